"""What the child process of a conversion does: the converter of the wheel, and its runtime.

Both crash on some files, leave files in the working directory and print to standard output. A child works in a folder of its
own, and where the wheel of another release is wanted, that release's packages come first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ir.base.child import Buffers, Child, Handler

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
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        request = {
            "do": "run",
            "model": str(model.resolve()),
            "inputs": [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()],
            "outputs": [*outputs],
        }
        buffers = [array.reshape(-1).view(np.uint8) for array in arrays.values()]
        answer, found = self._child.ask(request, buffers, seconds=seconds)
        return {
            name: np.frombuffer(data, dtype).reshape(shape)
            for name, (dtype, shape), data in zip(outputs, answer["outputs"], found, strict=True)
        }


def serve() -> Handler:
    """Answers the requests of `Converter`."""
    folder = tempfile.mkdtemp(prefix="lading-convert-")
    os.chdir(folder)
    return _answer


def _answer(request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Buffers]:
    return _convert(request) if request["do"] == "convert" else _run(request, buffers)


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
    import MNN.expr as expr
    import MNN.nn as nn

    names = [name for name, _, _ in request["inputs"]]
    module = nn.load_module_from_file(request["model"], names, request["outputs"])
    given = []
    for (_, dtype, shape), data in zip(request["inputs"], buffers, strict=True):
        array = np.frombuffer(data, dtype).reshape(shape)
        variable = expr.placeholder(shape, expr.NCHW, expr.int if array.dtype.kind == "i" else expr.float)
        if array.size:
            variable.write(array)
        given.append(variable)
    results = module.forward(given)
    results = results if isinstance(results, list | tuple) else [results]
    if len(results) != len(request["outputs"]):
        raise RuntimeError(f"{len(results)} results instead of {len(request['outputs'])}")
    arrays = []
    for item in results:
        array = np.array(item.read()) if 0 not in item.shape else np.zeros(item.shape, np.float32)
        arrays.append(np.ascontiguousarray(array.reshape(item.shape)))
    described = [[str(array.dtype), list(array.shape)] for array in arrays]
    return {"outputs": described}, [array.reshape(-1).view(np.uint8) for array in arrays]


__all__ = ["MEMORY", "Converter", "serve"]
