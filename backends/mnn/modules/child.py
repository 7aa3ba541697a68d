"""What the child process of a conversion does: the converter of the wheel, and its runtime.

Both crash on some files, leave files in the working directory and print to standard output. A child answers each request in
a scratch folder of its own, and where the wheel of another release is wanted, that release's packages come first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ir.base.child import Buffers, Child, Handler
from ir.base.scratch import scratch_folder

CHILD = "backends.mnn.modules.child:serve"
MEMORY = 8 << 30
"""Bytes that a conversion or a run may map."""


class Converter:
    """The converter and runtime of one release, in a child process that is started anew when it dies.

    Requests raise `ir.base.child.ChildFailed` when there is no answer. Use it as a context manager, or `close` it.
    """

    def __init__(self, packages: Path | None = None, memory: int = MEMORY) -> None:
        """Say where the wheel is; nothing is started.

        Args:
            packages: folder of the packages of a release's environment; None for the wheel that is installed here.
            memory: bytes of address space that the child may have.
        """
        self._child = Child(CHILD, memory, () if packages is None else (str(packages),))

    def __enter__(self) -> Converter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._child.close()

    def convert(self, source: Path, out: Path, arguments: Sequence[str] = (), *, seconds: float = 120) -> str:
        """Convert an ONNX file; what the converter printed. It says nothing reliable about success."""
        request = {
            "do": "convert",
            "source": str(source.resolve()),
            "out": str(out.resolve()),
            "arguments": [*arguments],
        }
        answer, _ = self._child.ask(request, seconds=seconds)
        return str(answer["log"])

    def run(
        self, model: Path, feeds: Mapping[str, np.ndarray], outputs: Sequence[str], *, seconds: float = 120
    ) -> dict[str, np.ndarray]:
        """Run a model as a module, with arrays of float32 or int32 by name; its outputs by name."""
        return self.run_many(model, [feeds], outputs, seconds=seconds)[0]

    def run_many(
        self,
        model: Path,
        feeds: Sequence[Mapping[str, np.ndarray]],
        outputs: Sequence[str],
        *,
        again: bool = False,
        seconds: float = 120,
    ) -> list[dict[str, np.ndarray]]:
        """Load a model once and run it for one set of feeds after the other, as an application does.

        Args:
            model: the file.
            feeds: arrays of float32 or int32 by name; each set has the same names in the same order.
            outputs: names of tensors of the model, which need not be its outputs.
            again: run all of them a second time; the results of that follow.
            seconds: time that each run may take.
        """
        arrays = [{name: np.asarray(array, order="C") for name, array in one.items()} for one in feeds]
        request = {
            "do": "run",
            "model": str(model.resolve()),
            "inputs": [[[name, str(x.dtype), list(x.shape)] for name, x in one.items()] for one in arrays],
            "outputs": [*outputs],
            "times": 1 + again,
        }
        buffers = [array.reshape(-1).view(np.uint8) for one in arrays for array in one.values()]
        answer, found = self._child.ask(request, buffers, seconds=seconds * max(len(feeds), 1) * (1 + again))
        parts = iter(found)
        return [
            {
                name: np.frombuffer(next(parts), dtype).reshape(shape)
                for name, (dtype, shape) in zip(outputs, one, strict=True)
            }
            for one in answer["outputs"]
        ]


def serve() -> Handler:
    """Answers the requests of `Converter`."""
    return _answer


def _answer(request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Buffers]:
    with scratch_folder() as folder:
        os.chdir(folder)
        try:
            return _convert(request) if request["do"] == "convert" else _run(request, buffers)
        finally:
            os.chdir(os.sep)


def _convert(request: dict[str, Any]) -> tuple[dict[str, Any], Buffers]:
    import ctypes

    import _tools  # type: ignore[import-not-found]

    words = ["mnnconvert", "-f", "ONNX", "--modelFile", request["source"], "--MNNModel", request["out"]]
    libc = ctypes.CDLL(None)
    with tempfile.TemporaryFile() as log:
        kept = os.dup(1), os.dup(2)
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            _tools.mnnconvert([*words, "--bizCode", "lading", *request["arguments"]])
            libc.fflush(None)
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
        log.seek(0)
        return {"log": log.read().decode("utf-8", "replace")}, ()


def _run(request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Buffers]:
    import MNN.nn as nn

    names = [name for name, _, _ in request["inputs"][0]] if request["inputs"] else []
    module = nn.load_module_from_file(request["model"], names, request["outputs"])
    parts = iter(buffers)
    feeds = [[np.frombuffer(next(parts), dtype).reshape(shape) for _, dtype, shape in one] for one in request["inputs"]]
    described: list[list[Any]] = []
    sent: list[Any] = []
    for arrays in feeds * request["times"]:
        results = module.forward([_variable(array) for array in arrays])
        results = results if isinstance(results, list | tuple) else [results]
        if len(results) != len(request["outputs"]):
            raise RuntimeError(f"{len(results)} results instead of {len(request['outputs'])}")
        found = [_array(item) for item in results]
        described.append([[str(array.dtype), list(array.shape)] for array in found])
        sent += [array.reshape(-1).view(np.uint8) for array in found]
    return {"outputs": described}, sent


def _variable(array: np.ndarray) -> Any:
    """A tensor of MNN with the elements of an array."""
    import MNN.expr as expr

    variable = expr.placeholder(list(array.shape), expr.NCHW, expr.int if array.dtype.kind == "i" else expr.float)
    if array.size:
        variable.write(array)
    return variable


def _array(item: Any) -> np.ndarray:
    """The elements of a tensor of MNN, row by row, whatever its layout is."""
    import MNN.expr as expr

    if 0 in item.shape:
        return np.zeros(item.shape, np.int32 if item.dtype == expr.int else np.float32)
    if item.data_format == expr.NC4HW4:
        item = expr.convert(item, expr.NCHW)
    return np.array(item.read(), order="C").reshape(item.shape)


__all__ = ["MEMORY", "Converter", "serve"]
