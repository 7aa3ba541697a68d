"""Real inputs for a model, from files: ``.npz`` archives with its inputs' names, or ONNX test data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ir.base.diag import LadingError, suggest
from ir.base.types import TensorType
from ir.evaluate.evaluator import check_feed
from ir.graph.graph import Graph, Value
from ir.onnx.data_sets import input_of, number_of

DATA_SET = "test_data_set_*"
"""Names of folders with one tensor of ONNX in each file."""
WHAT = "give an .npz file with an array for each input, a folder of such files, or ONNX test data sets"


def read_inputs(path: Path, graph: Graph) -> dict[str, dict[str, np.ndarray]]:
    """Sets of inputs for a graph, by what they were read from.

    Arrays of another width than the input's get its element type where no number changes; floats are rounded.

    Args:
        path: an ``.npz`` file, a folder of them, a folder with ``input_0.pb`` and so on, or a folder of such folders.
        graph: the model, whose inputs they are for.

    Raises:
        LadingError: U962 nothing can be read, U963 what is read does not fit the inputs.
    """
    path = path.expanduser()
    found = {str(each): _read(each, graph) for each in _places(path)}
    return {name: _fitting(arrays, graph, name) for name, arrays in found.items()}


def _places(path: Path) -> list[Path]:
    """The files and folders of which each holds one set."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LadingError("U962", "there is no such file or folder of inputs", str(path), WHAT)
    if any(path.glob("input_*.pb")):
        return [path]
    found = sorted(path.glob("*.npz"), key=_order)
    found += sorted((folder for folder in path.glob(DATA_SET) if any(folder.glob("input_*.pb"))), key=_order)
    if not found:
        raise LadingError("U962", "the folder holds no inputs", str(path), WHAT)
    return found


def _order(path: Path) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name))


def _read(path: Path, graph: Graph) -> dict[str, np.ndarray]:
    return _tensors(path, graph) if path.is_dir() else _archive(path)


def _archive(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array without a name")
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # Damaged archives raise whatever the libraries below numpy do.
        raise LadingError("U962", f"the inputs cannot be read: {_short(error)}", str(path), WHAT) from None


def _tensors(folder: Path, graph: Graph) -> dict[str, np.ndarray]:
    """Files are in the order of the inputs; a name that a tensor has says more."""
    import onnx
    from onnx import numpy_helper

    names = [value.name for value in graph.inputs]
    found: dict[str, np.ndarray] = {}
    for file in sorted(folder.glob("input_*.pb"), key=_order):
        tensor = onnx.TensorProto()
        try:
            tensor.ParseFromString(file.read_bytes())
            array = numpy_helper.to_array(tensor)
        except Exception as error:
            raise LadingError("U962", f"the inputs cannot be read: {_short(error)}", str(file), WHAT) from None
        number = number_of(file)
        name = input_of(tensor.name, number, names)
        if name is None:
            raise LadingError("U963", f"the model has no input number {number}", str(file), f"it has {_listed(graph)}")
        found[name] = array
    return found


def _fitting(arrays: Mapping[str, np.ndarray], graph: Graph, where: str) -> dict[str, np.ndarray]:
    names = [value.name for value in graph.inputs]
    for name in arrays:
        if name not in names:
            hint = suggest(name, names) or f"it has {_listed(graph)}"
            raise LadingError("U963", f"the model has no input {name!r}", where, hint)
    found: dict[str, np.ndarray] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for value in graph.inputs:
        if value.name not in arrays:
            raise LadingError("U963", f"there is no array for input {value.name!r}", where, f"it is {value.type}")
        found[value.name] = _typed(value, arrays[value.name], where)
        try:
            check_feed(value, found[value.name], sizes)
        except LadingError as error:
            first = error.diagnostics[0]
            raise LadingError("U963", first.message, where, first.hint) from None
    return found


def _typed(value: Value, array: np.ndarray, where: str) -> np.ndarray:
    """The array in the element type of an input, where that changes no number but by rounding."""
    if not isinstance(value.type, TensorType) or array.dtype == value.dtype.numpy:
        return array
    wanted, given = value.dtype.numpy, array.dtype
    kinds = {np.dtype(each).kind if np.dtype(each).kind != "V" else "f" for each in (wanted, given)}
    if kinds == {"f"}:
        return array.astype(wanted)
    if kinds <= {"i", "u"}:
        made = array.astype(wanted)
        if np.array_equal(made.astype(object), array.astype(object)):
            return made
    message = f"input {value.name!r} is {value.type}, the array is {given}{list(array.shape)}"
    raise LadingError("U963", message, where, f"convert it with .astype({wanted})")


def _listed(graph: Graph) -> str:
    return ", ".join(f"{value.name}: {value.type}" for value in graph.inputs) or "none"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


__all__ = ["read_inputs"]
