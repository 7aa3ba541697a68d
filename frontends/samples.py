"""Calibration data of models that read no tokens, from files: arrays by name of the input, or ONNX test data.

Read are ``.npz`` files, ``.npy`` files for models of one input, folders of either, and folders with
``test_data_set_*/input_*.pb`` as ONNX models are published with. Arrays are read a sample at a time, so that a file may
be larger than memory. Nothing is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.onnx.data_sets import input_of, number_of
from ir.quant.statistics.samples import CalibrationSamples, Feed, split

ROWS_ELEMENTS = 1 << 16
"""Elements up to which rows of an array that holds many samples are taken together."""
MOST_ROWS = 32
"""Rows that are taken together at most."""
HINT = "give an .npz file with an array for each input, a folder of such files, or a folder with test_data_set_*/input_*.pb"


def load_samples(path: Path, graph: Graph) -> CalibrationSamples:
    """The samples in a file or folder, split into those to calibrate on and those to measure with.

    Args:
        path: see the module.
        graph: the model that they are fed to, whose inputs say how arrays are cut into samples.

    Raises:
        LadingError: Q473 there is nothing that can be read, Q474 what is read does not fit the model's inputs.
    """
    inputs = {value.name: value for value in graph.inputs}
    parts = [_opened(item, graph) for item in _files(path)]
    source = _Files([part for part in parts if part.count], inputs)
    if not len(source):
        raise LadingError("Q473", "there are no samples in the calibration data", str(path), HINT)
    count = sum(part.rows for part in parts)
    return split(source, f"{count} sample{'s' if count != 1 else ''}")


def _files(path: Path) -> list[Path]:
    """The files, and folders of ONNX test data, that samples come from, in order."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LadingError("Q473", "there is no such calibration data", str(path), HINT)
    if _protos(path):
        return [path]
    found = sorted(
        item for item in path.iterdir() if item.suffix in (".npz", ".npy") or (item.is_dir() and _protos(item))
    )
    if not found:
        raise LadingError("Q473", "the folder holds no calibration data", str(path), HINT)
    return found


def _protos(folder: Path) -> list[Path]:
    """The inputs of a folder of ONNX test data, in order of their numbers."""
    return sorted((item for item in folder.glob("input_*.pb") if number_of(item) >= 0), key=number_of)


# ---- parts ----


@dataclass(frozen=True)
class _Array:
    """An array of a part, and how it is cut.

    Attributes:
        name: of the input.
        shape: of one sample; the leading length is `rows` at most.
        rows: length along the leading axis that makes one sample; 0 where the whole array does.
        stacked: the leading axis counts samples, and is none of the input's.
        total: length of the leading axis.
    """

    name: str
    shape: tuple[int, ...]
    rows: int
    stacked: bool
    total: int

    @property
    def count(self) -> int:
        """How many samples it makes."""
        return -(-self.total // self.rows) if self.rows else 1


@dataclass(frozen=True)
class _Part:
    """One file.

    Attributes:
        path: of the file, or of a folder of ONNX test data.
        count: how many sets of inputs it makes.
        rows: how many samples are in those, some of which may be fed together.
        open: opens readers of single sets by input name.
    """

    path: Path
    count: int
    rows: int
    open: Callable[[ExitStack], dict[str, Callable[[int], np.ndarray]]]


class _Files:
    """The samples of several files, one behind the other."""

    def __init__(self, parts: Sequence[_Part], inputs: dict[str, Value]) -> None:
        self._parts = parts
        self._inputs = inputs
        stats = [(part.path, item.stat()) for part in parts for item in _stat_of(part.path)]
        self.identity = repr([(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats])

    def __len__(self) -> int:
        return sum(part.count for part in self._parts)

    def read(self, places: Sequence[int]) -> Iterator[Feed]:
        """See `ir.quant.statistics.samples.SampleSource.read`."""
        begin = 0
        for part in self._parts:
            mine = [place - begin for place in places if begin <= place < begin + part.count]
            begin += part.count
            if not mine:
                continue
            with ExitStack() as stack:
                readers = part.open(stack)
                for place in mine:
                    try:
                        arrays = {name: read(place) for name, read in readers.items()}
                    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                        raise _unreadable(part.path, error) from error
                    yield {name: _fitted(self._inputs[name], array, part.path) for name, array in arrays.items()}


def _stat_of(path: Path) -> list[Path]:
    return _protos(path) if path.is_dir() else [path]


def _opened(path: Path, graph: Graph) -> _Part:
    try:
        if path.is_dir():
            return _test_data(path, graph)
        if path.suffix == ".npy":
            return _single(path, graph)
        return _archive(path, graph)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> LadingError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return LadingError("Q473", f"the calibration data cannot be read: {reason}", str(path), HINT)


def _test_data(folder: Path, graph: Graph) -> _Part:
    """One sample as ONNX models are published with: a tensor for each input."""
    from google.protobuf.message import DecodeError
    from onnx import TensorProto, numpy_helper

    names = [value.name for value in graph.inputs]
    found: dict[str, Path] = {}
    for file in _protos(folder):
        proto = TensorProto()
        try:
            proto.ParseFromString(file.read_bytes())
        except DecodeError as error:
            raise ValueError(f"{file.name} is no tensor") from error
        name = input_of(proto.name, number_of(file), names)
        if name is None:
            raise LadingError("Q474", f"the model has {len(names)} inputs, and {file.name} is one more", str(folder))
        found[name] = file
    _require_all(graph, found, folder)

    def opened(stack: ExitStack) -> dict[str, Callable[[int], np.ndarray]]:
        def reader(file: Path) -> Callable[[int], np.ndarray]:
            def read(place: int) -> np.ndarray:
                proto = TensorProto()
                proto.ParseFromString(file.read_bytes())
                return numpy_helper.to_array(proto)

            return read

        return {name: reader(file) for name, file in found.items()}

    return _Part(folder, 1, 1, opened)


def _single(path: Path, graph: Graph) -> _Part:
    """A bare array for the one input of a model."""
    if len(graph.inputs) != 1:
        names = ", ".join(value.name for value in graph.inputs)
        raise LadingError("Q474", "one array is given, and the model has other than one input", str(path),
                          f"give an .npz file with arrays {names}")  # fmt: skip
    value = graph.inputs[0]

    def opened(stack: ExitStack) -> Any:
        return stack.enter_context(path.open("rb"))

    return _part(path, graph, {value.name: opened})


def _archive(path: Path, graph: Graph) -> _Part:
    """Arrays by name."""
    if not zipfile.is_zipfile(path):
        raise LadingError("Q473", "the calibration data is no .npz file", str(path), HINT)
    with zipfile.ZipFile(path) as archive:
        members = {item.removesuffix(".npy"): item for item in archive.namelist() if item.endswith(".npy")}
    _require_all(graph, members, path)

    def opener(member: str) -> Callable[[ExitStack], IO[bytes]]:
        def opened(stack: ExitStack) -> IO[bytes]:
            archive = stack.enter_context(zipfile.ZipFile(path))
            return stack.enter_context(archive.open(member))

        return opened

    return _part(path, graph, {value.name: opener(members[value.name]) for value in graph.inputs})


def _require_all(graph: Graph, found: Any, path: Path) -> None:
    """Every input of the model is there, and nothing else.

    Raises:
        LadingError: Q474 otherwise.
    """
    names = [value.name for value in graph.inputs]
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    if missing or extra:
        there = f"; it has {', '.join(extra[:4])}" if extra else ""
        what = f"has no array {missing[0]!r}{there}" if missing else f"has an array {extra[0]!r}, which is no input"
        wanted = ", ".join(f"{value.name}: {value.type}" for value in graph.inputs)
        raise LadingError("Q474", f"the calibration data {what}", str(path), f"the model takes {wanted}")


def _part(path: Path, graph: Graph, openers: dict[str, Callable[[ExitStack], IO[bytes]]]) -> _Part:
    layouts: dict[str, _Array] = {}
    with ExitStack() as stack:
        for name, opener in openers.items():
            shape, _, _ = _header(opener(stack))
            layouts[name] = _layout(graph, graph.value(name), shape, path)
    counts = {item.count for item in layouts.values() if item.rows}
    if len(counts) > 1:
        told = ", ".join(f"{item.count} of {item.name}" for item in layouts.values() if item.rows)
        raise LadingError("Q474", f"the arrays hold different numbers of samples: {told}", str(path))

    def opened(stack: ExitStack) -> dict[str, Callable[[int], np.ndarray]]:
        return {name: _reader(opener(stack), layouts[name]) for name, opener in openers.items()}

    rows = max((item.total for item in layouts.values() if item.rows), default=1)
    return _Part(path, counts.pop() if counts else 1, rows, opened)


def _layout(graph: Graph, value: Value, shape: tuple[int, ...], path: Path) -> _Array:
    """How an array is cut into samples of an input."""
    dims = value.shape
    if dims is None:
        return _Array(value.name, shape, 0, False, 0)
    if len(shape) == len(dims) + 1:
        return _Array(value.name, shape[1:], 1, True, shape[0])
    if len(shape) != len(dims):
        raise _misfit(value, shape, path)
    if not shape:
        return _Array(value.name, shape, 0, False, 0)
    first = dims[0]
    if isinstance(first, int):
        if first == 0 or shape[0] % first:
            raise _misfit(value, shape, path)
        return _Array(value.name, (first, *shape[1:]), first, False, shape[0])
    if len(shape) < 2 or not counts_samples(graph, first):
        return _Array(value.name, shape, 0, False, 0)
    rows = max(1, min(MOST_ROWS, ROWS_ELEMENTS // max(1, prod(shape[1:]))))
    rows = next(item for item in range(rows, 0, -1) if first.accepts(item) or item == 1)
    return _Array(value.name, (rows, *shape[1:]), rows, False, shape[0])


IMAGE_RANK = 4
"""Axes of inputs whose leading one is a batch, also where outputs do not say that they have the same."""


def counts_samples(graph: Graph, dim: Dim) -> bool:
    """True when a dimension is the leading one of all inputs and outputs and nothing else, as that of a batch.

    Outputs may have another name for it, which a file tells of none or of each, where inputs have as many axes as images.
    """
    inputs, outputs = ([value.shape for value in values] for values in (graph.inputs, graph.outputs))
    if not all(shape and shape[0] == dim and dim not in shape[1:] for shape in inputs):
        return False
    if all(shape and shape[0] == dim and dim not in shape[1:] for shape in outputs):
        return True
    others = {item for shape in inputs for item in (shape or ())[1:]}
    named = all(shape is None or (shape and isinstance(shape[0], Dim) and shape[0] not in others) for shape in outputs)
    return named and all(len(shape or ()) >= IMAGE_RANK for shape in inputs)


def _misfit(value: Value, shape: Sequence[int], path: Path) -> LadingError:
    message = (
        f"the calibration data of input {value.name!r} has the shape {list(shape)}, and the model takes {value.type}"
    )
    hint = "the leading axis may count samples; the others are as the model takes them"
    return LadingError("Q474", message, str(path), hint)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and element type of an array in a file, which is left behind the header."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"version {version} of the array format is not known")
    shape, columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    return shape, columns, dtype


def _reader(file: IO[bytes], layout: _Array) -> Callable[[int], np.ndarray]:
    """A function that reads the sample at a place."""
    shape, columns, dtype = _header(file)
    start = file.tell()
    if columns or not layout.rows:

        def whole(place: int) -> np.ndarray:
            file.seek(start)
            array = _numbers(file, dtype, prod(shape)).reshape(shape, order="F" if columns else "C")
            if not layout.rows:
                return array
            rows = array[place * layout.rows : (place + 1) * layout.rows]
            return rows[0] if layout.stacked else rows

        return whole
    row = prod(shape[1:])

    def part(place: int) -> np.ndarray:
        begin = place * layout.rows
        rows = min(layout.rows, shape[0] - begin)
        file.seek(start + begin * row * dtype.itemsize)
        array = _numbers(file, dtype, rows * row)
        return array.reshape(layout.shape if layout.stacked else (rows, *shape[1:]))

    return part


def _numbers(file: IO[bytes], dtype: np.dtype, count: int) -> np.ndarray:
    data = file.read(count * dtype.itemsize)
    if len(data) < count * dtype.itemsize:
        raise ValueError("it ends too early")
    return np.frombuffer(data, dtype)


def _fitted(value: Value, array: np.ndarray, path: Path) -> np.ndarray:
    """An array as an input takes it.

    Raises:
        LadingError: Q474 its type or shape does not fit.
    """
    if not isinstance(value.type, TensorType):
        raise LadingError("Q474", f"the input {value.name!r} is {value.type}, for which no data is read", str(path))
    shape = value.shape
    fits = shape is None or (
        len(shape) == array.ndim
        and all(
            dim.accepts(size) if isinstance(dim, Dim) else dim == size
            for dim, size in zip(shape, array.shape, strict=True)
        )
    )
    if not fits:
        raise _misfit(value, array.shape, path)
    wanted = value.dtype.numpy
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        message = f"the calibration data of input {value.name!r} is {array.dtype}, and the model takes {value.type}"
        raise LadingError("Q474", message, str(path))
    return array if array.dtype == wanted else array.astype(wanted)


__all__ = ["counts_samples", "load_samples"]
