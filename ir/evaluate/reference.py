"""What a model means: its own file run by onnxruntime without optimisation, or by ONNX's reference evaluator.

onnxruntime lacks kernels for some operators and element types, and knows no newer opsets than its own; what it does not
load is computed by ONNX's own definitions, in a child process: slowly, and right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ir.base.child import Child, ChildFailed
from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.evaluate.kernels import OpenFile, packed, unpacked
from ir.facts.free_tensors import FreeTensors
from ir.graph.graph import Graph

SECONDS = 120.0
"""Time that the reference evaluator has for one set of feeds."""
MEMORY = 8 << 30
"""Address space that it may have."""

Feeds = Mapping[str, np.ndarray]


class Reference(Protocol):
    """Something that computes what a model means.

    Attributes:
        name: what computes, with its version.
        outputs: names of the outputs, in order.
    """

    name: str
    outputs: list[str]

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """The wanted values by name, any of the model, or its outputs where none are named; LadingError T220, T225,
        T280."""


class _Kernels:
    """The file in onnxruntime; tensors that it reads and never makes are fed, constants among them. Its kernel for sigmoids,
    which is coarse where they are small, is not used."""

    def __init__(self, path: Path, graph: Graph) -> None:
        from importlib.metadata import version

        fact = graph.fact(FreeTensors)
        tensors = fact.tensors if fact is not None else ()
        self.name = f"onnxruntime {version('onnxruntime')}"
        self._path = path
        self._free = {item.name: (item.dtype, len(item.sizes)) for item in tensors}
        self._constants = {item.name: item.array for item in tensors if item.value is not None}
        self._file = OpenFile(path, optimized=False, free=self._free, fine=True)
        self._exposing: tuple[frozenset[str], OpenFile] | None = None
        self.outputs = self._file.outputs

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """See `Reference.run`."""
        feeds = {**feeds, **self._constants}
        inner = frozenset(outputs or ()) - set(self.outputs)
        if not inner:
            return self._file.run(feeds, outputs)
        if self._exposing is None or not inner <= self._exposing[0]:
            opened = OpenFile(self._path, optimized=False, free=self._free, exposed=sorted(inner), fine=True)
            self._exposing = inner, opened
        return self._exposing[1].run(feeds, outputs)


class _Definitions:
    """The file in ONNX's reference evaluator, in a child."""

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        from importlib.metadata import version

        self.name = f"the reference evaluator of onnx {version('onnx')}"
        self._path, self._seconds = path, seconds
        self._child = Child(f"{__name__}:serve", MEMORY)
        self.outputs = self._ask({"do": "open"})[0]["outputs"]

    def _ask(self, request: dict[str, Any], buffers: Sequence[Any] = ()) -> tuple[dict[str, Any], list[bytearray]]:
        try:
            return self._child.ask({**request, "path": str(self._path.absolute())}, buffers, seconds=self._seconds)
        except ChildFailed as error:
            place = "\n".join([str(self._path), *error.detail.splitlines()[-2:]])
            code = "T220" if error.kind == "raised" else "T280"
            raise LadingError(code, f"{self.name} {error.how}", place) from error

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """See `Reference.run`."""
        given, buffers = packed([feeds])
        names = None if outputs is None else list(outputs)
        answer, found = self._ask({"do": "run", "feeds": given, "outputs": names}, buffers)
        return unpacked(answer, found)[0]


class GraphReference:
    """A graph that was read from no ONNX file, computed by its own definitions in onnxruntime."""

    def __init__(self, graph: Graph) -> None:
        from importlib.metadata import version

        from ir.evaluate.evaluator import Evaluator

        self.name = f"onnxruntime {version('onnxruntime')}"
        self.outputs = [value.name for value in graph.outputs]
        self._graph = graph
        self._whole = Evaluator(graph)
        self._parts: dict[tuple[str, ...], Evaluator] = {}

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """See `Reference.run`."""
        from ir.evaluate.evaluator import Evaluator

        if outputs is None:
            return self._whole.run(feeds)
        names = tuple(outputs)
        if names not in self._parts:
            self._parts[names] = Evaluator(self._graph, names)
        inner = self._parts[names]
        return inner.run({value.name: feeds[value.name] for value in inner.needed if value.name in feeds})


def open_reference(path: Path | None, graph: Graph) -> Reference:
    """What computes a model, as independent of this program as can be.

    Args:
        path: the ONNX file that the model was read from; None for one of another format.
        graph: the model as it was read.

    Raises:
        LadingError: T220, T280 nothing computes it; the message is that of onnxruntime.
    """
    if path is None:
        return GraphReference(graph)
    first: LadingError | None = None
    if not _is_packed_by_four(graph):
        try:
            return _Kernels(path, graph)
        except LadingError as refused:
            first = refused
    try:
        return _Definitions(path)
    except LadingError as refused:
        raise first or refused from None


def _is_packed_by_four(graph: Graph) -> bool:
    """True for a graph whose inputs or outputs are integers of 2 bits, which onnxruntime's Python interface does not take."""
    types = [value.type for value in (*graph.inputs, *graph.outputs)]
    return any(isinstance(one, TensorType) and one.dtype.bits == 2 for one in types)


# ---- the child's side ----


def serve() -> Callable[[dict[str, Any], list[bytearray]], tuple[dict[str, Any], Sequence[Any]]]:
    """What answers in the child; see `ir.base.child`."""
    from ir.evaluate.kernels import feeds_of, given_back

    held: dict[str, Any] = {}

    def evaluator(path: str) -> Any:
        if path not in held:
            import onnx
            from onnx.reference import ReferenceEvaluator

            held[path] = ReferenceEvaluator(onnx.load(path))
        return held[path]

    def answer(request: dict[str, Any], buffers: list[bytearray]) -> tuple[dict[str, Any], Sequence[Any]]:
        model = evaluator(request["path"])
        if request["do"] == "open":
            return {"outputs": list(model.output_names)}, ()
        (feeds,) = feeds_of(request, buffers)
        wanted = set(model.input_names)
        names = request["outputs"] or list(model.output_names)
        found = model.run(names, {name: array for name, array in feeds.items() if name in wanted})
        return given_back([{name: np.asarray(array) for name, array in zip(names, found, strict=True)}])

    return answer


__all__ = ["Feeds", "GraphReference", "Reference", "open_reference"]
