"""Which node of a model is the first that MNN computes otherwise than the model means, or that it dies of.

Tensors of a written file keep the names of the values that they hold, and a module may be asked for any of them. So the file
itself is run and its inner values are compared, in program order, with those of the reference. A value that differs is only
blamed on its node when the node is wrong by itself: computed by the reference from what MNN has for its operands, it would be
another. Where it would not, what was rounded before has grown. Values that the converter has merged away are looked at in a
file that is written again with them as outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from backends.mnn.modules.child import Converter
from backends.mnn.modules.closeness import NOISE, Misfit, misfit
from backends.mnn.read.net_file import read_net
from ir.base.child import ChildFailed
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from ir.base.types import TensorType, dtype_of_numpy
from ir.evaluate.kernels import run_file
from ir.evaluate.reference import Feeds, Reference
from ir.graph.copy import copied
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads
from ir.onnx.export import export_nodes, tensor_proto
from ir.tensor.base import Tensor

Convert = Callable[[Graph, Path], object]
"""Writes a graph, with further outputs than it had, as it was written before; LadingError when that is not possible."""

CHUNK = 48
"""Values that are compared in one run."""
SECONDS = 60.0
"""Time that a run may take."""
WORDS = {
    "wrong": "the first node that is wrong",
    "fatal": "the first node that is fatal",
    "grown": "the first node where it shows",
}
"""What a culprit is called."""
SUMS = {"Conv": 1e-3, "ConvTranspose": 1e-3, "MatMul": 1e-4, "Gemm": 1e-4, "Einsum": 1e-4}
"""How far sums of products may be off, relative to the sums of their absolute values, of convolutions the largest of a
channel. Winograd's transformation for tiles of six takes places together, and was off by 4e-4 of that at most; Strassen's
products by a tenth. An operator that computes something else is off by hundreds of times as much. Against double precision a
detector of text with one such convolution at its end was off by 2.3e-4 of its output's size on MNN 3.6.1, and by 3e-6 with
smaller tiles (``WINOGRAD_MEMORY_LEVEL`` 1), as much as onnxruntime."""
MOST_FOLLOWING = 2
"""Operators that the converter may put into the one before them."""
MOST_ALONE = 12
"""Values that are asked for one by one where a run for all of them fails."""


@dataclass(frozen=True)
class Culprit:
    """The first node that is computed wrong.

    Attributes:
        node: it, of the model as it was read.
        text: what is wrong with its value.
        how: ``wrong``, ``fatal``, or ``grown`` when the node is right by itself, and so is every other: what is rounded grows
            until it shows here.
        merged: nodes before it that the file has no values of, of which one may be the wrong one instead.
    """

    node: Node
    text: str
    how: Literal["wrong", "fatal", "grown"] = "wrong"
    merged: int = 0

    def lines(self) -> Iterator[str]:
        """What to say of it."""
        yield f"{WORDS[self.how]}: {describe(self.node)}".replace("\n", ", ")
        yield f"its value {self.text}"
        if self.merged:
            yield f"or one of {self.merged} before it, which MNN's converter merged with it"


@dataclass(frozen=True)
class Case:
    """What is looked into.

    Attributes:
        original: the model as it was read.
        graph: the graph that was written.
        model: the file that was written.
        reference: computes what the values should be.
        feeds: the inputs of the reference.
        held: the same as MNN is given them, by name of the inputs of the file.
        half: the reference computes in half precision.
        convert: writes a changed graph in the same way.
    """

    original: Graph
    graph: Graph
    model: Path
    reference: Reference
    feeds: Feeds
    held: Feeds
    half: bool = False
    convert: Convert | None = None

    @cached_property
    def emitted(self) -> dict[str, Value]:
        """Values of the written graph by name."""
        return {value.name: value for node in self.graph.nodes for value in node.outputs}

    @cached_property
    def values(self) -> list[Value]:
        """Values of the model that the written graph has too, in program order."""
        return [value for node in self.original.nodes for value in node.outputs if value.name in self.emitted]


def first_wrong(case: Case, converter: Converter) -> Culprit | None:
    """The first node whose value differs; None when none does."""
    inside, shown = _shown(case)
    found = _Search(case, converter, case.model, shown).first()
    if found is None or not found.merged or case.convert is None:
        return found
    made = {value for node in _region(found.node, inside).nodes for value in node.outputs}
    hidden = [value for value in case.values if value in made]
    with scratch_folder() as folder:
        if (model := _with_outputs(case, hidden, folder)) is None:
            return found
        again = _Search(case, converter, model, [value for value in case.values if value in {*hidden, *shown}]).first()
    return again or found


def first_fatal(case: Case, converter: Converter) -> Culprit | None:
    """The first node that MNN does not survive; None when it survives every value by itself."""
    inside, shown = _shown(case)

    def ends(count: int) -> ChildFailed | None:
        part = shown[:count]
        made = set(part)
        last = [value for value in part if not any(out in made for node in value.users for out in node.outputs)]
        try:
            converter.run_many(case.model, [case.held], [value.name for value in last], seconds=SECONDS)
        except ChildFailed as error:
            return error
        return None

    if not shown or (how := ends(len(shown))) is None:
        return None
    fewest, most = 0, len(shown)  # With so few values it lives, with so many it dies.
    while most - fewest > 1:
        middle = (fewest + most) // 2
        error = ends(middle)
        fewest, most, how = (middle, most, how) if error is None else (fewest, middle, error)
    node = shown[most - 1].producer
    assert node is not None
    merged = _region(node, inside).merged
    return Culprit(node, f"is not reached: the process {how.how}", "fatal", merged)


def _shown(case: Case) -> tuple[set[str], list[Value]]:
    """Names of the values of the model that the file has, and the values in program order."""
    names = set(read_net(case.model).get("tensorName", ()))
    found = [value for value in case.values if value.name in names]
    return {value.name for value in found}, found


def _with_outputs(case: Case, values: Sequence[Value], folder: Path) -> Path | None:
    """The file with further outputs; None when it cannot be written."""
    twin = copied(case.graph)
    known = set(twin.outputs)
    twin.set_outputs([*twin.outputs, *(value for each in values if (value := twin.value(each.name)) not in known)])
    assert case.convert is not None
    with suppress(LadingError, ChildFailed):
        case.convert(twin, folder / case.model.name)
        return folder / case.model.name
    return None


@dataclass(frozen=True)
class _Region:
    """A node with those before it of which a file has no values.

    Attributes:
        nodes: in program order, the node last.
        inputs: what they read that the file has, and inputs of the model.
        consts: constants that they read.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    consts: tuple[Value, ...]

    @property
    def merged(self) -> int:
        """Nodes besides the last that compute something."""
        return sum(node.op != "Constant" for node in self.nodes) - 1


def _region(node: Node, inside: set[str]) -> _Region:
    nodes: dict[Node, None] = {node: None}
    read: dict[Value, None] = {}
    waiting = [node]
    while waiting:
        for value in reads(waiting.pop()):
            producer = value.producer
            if producer is None or value.name in inside:
                read[value] = None
            elif producer not in nodes:
                nodes[producer] = None
                waiting.append(producer)
    ordered = tuple(each for each in node.home.nodes if each in nodes) if len(nodes) > 1 else (node,)
    return _Region(ordered, *(tuple(x for x in read if (x.const is not None) == const) for const in (False, True)))


def _joined(region: _Region, node: Node) -> _Region:
    """The region with a node behind it."""
    made = {value for each in region.nodes for value in each.outputs}
    read = [value for value in reads(node) if value not in made]
    inputs = (*region.inputs, *(value for value in read if value.const is None))
    consts = (*region.consts, *(value for value in read if value.const is not None))
    return _Region((*region.nodes, node), tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(consts)))


class _Search:
    """Compares the values of one file."""

    def __init__(self, case: Case, converter: Converter, model: Path, shown: Sequence[Value]) -> None:
        self._case = case
        self._converter = converter
        self._model = model
        self._shown = [value for value in shown if _is_tensor(value)]
        self._inside = {value.name for value in shown}
        self._outputs = {value.name for value in case.original.outputs}
        self._wanted: dict[str, np.ndarray] = {}
        self._got: dict[str, np.ndarray] = {}

    def first(self) -> Culprit | None:
        """The first node that is wrong by itself; else the first whose value differs."""
        grown: Culprit | None = None
        for start in range(0, len(self._shown), CHUNK):
            part = self._shown[start : start + CHUNK]
            self._look([value.name for value in part])
            for value in part:
                node = value.producer
                if value.name not in self._got or node is None:
                    continue
                found = self._differs(self._wanted[value.name], self._got[value.name], value.name)
                if found is None:
                    continue
                region = _region(node, self._inside)
                if not self._is_right(region, value):
                    return Culprit(node, found.text, merged=region.merged)
                grown = grown or Culprit(node, found.text, "grown")
        return grown

    def _look(self, names: Sequence[str]) -> None:
        """Learn what some values should be and what MNN has for them; those of the last time are kept."""
        kept = set(list(self._wanted)[-CHUNK:])
        self._wanted = {name: x for name, x in self._wanted.items() if name in kept}
        self._got = {name: x for name, x in self._got.items() if name in kept}
        self._wanted |= self._case.reference.run(self._case.feeds, names)
        self._got |= self._computed(names)

    def _computed(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """What MNN has for some values, as far as it gives them."""
        found: dict[str, np.ndarray] = {}
        with suppress(ChildFailed):
            return self._converter.run_many(self._model, [self._case.held], names, seconds=SECONDS)[0]
        for name in names[:MOST_ALONE]:
            with suppress(ChildFailed):
                found |= self._converter.run_many(self._model, [self._case.held], [name], seconds=SECONDS)[0]
        return found

    def _differs(
        self, wanted: np.ndarray, got: np.ndarray, name: str, noise: np.ndarray | None = None
    ) -> Misfit | None:
        if wanted.shape != got.shape and name not in self._outputs:
            # Axes of size 1 come and go inside of a file.
            if wanted.size != got.size:
                return None
            got = got.reshape(wanted.shape)
        return misfit(wanted, got, by=self._case.reference.name, half=self._case.half, noise=noise)

    def _is_right(self, region: _Region, value: Value) -> bool:
        """True when nodes give what MNN has for a value, computed from what MNN has for their operands.

        The converter puts activations into the operators before them and keeps the name of what was before.
        """
        target: Value | None = value
        for _ in range(1 + MOST_FOLLOWING):
            if target is None or not all(_is_tensor(each) for each in region.inputs):
                return False
            if self._gives(region, target, self._got[value.name]):
                return True
            following = target.users
            node = following[0] if len(following) == 1 and not following[0].subgraphs else None
            target = node.output if node is not None and len(node.outputs) == 1 and node.home is value.graph else None
            region = _joined(region, node) if node is not None else region
        return False

    def _gives(self, region: _Region, value: Value, got: np.ndarray) -> bool:
        """True when nodes give an array, computed from what MNN has for their operands."""
        try:
            given = self._operands(region.inputs)
            wanted = _computed(region, value, given)
            noise = None
            if share := max((SUMS.get(node.op, 0.0) for node in region.nodes), default=0.0):
                noise = share / NOISE * np.abs(_over_tiles(region, _computed(region, value, given, absolute=True)))
        except (LadingError, ChildFailed):
            return False
        return wanted.size == got.size and self._differs(wanted, got, value.name, noise) is None

    def _operands(self, values: Sequence[Value]) -> dict[str, np.ndarray]:
        """What MNN has for operands, in the types of the model; where it gives nothing, what they should be."""
        missing = [value.name for value in values if value.name not in self._wanted and not value.is_input]
        if missing:
            self._look(missing)
        found = {}
        for value in values:
            right = self._case.feeds[value.name] if value.is_input else self._wanted[value.name]
            mine = self._got.get(value.name)
            fits = mine is not None and mine.size == right.size
            found[value.name] = mine.reshape(right.shape).astype(right.dtype) if mine is not None and fits else right
        return found


def _computed(
    region: _Region, value: Value, operands: Mapping[str, np.ndarray], *, absolute: bool = False
) -> np.ndarray:
    """A value of nodes for their operands, by onnxruntime; with `absolute` for absolute values of floats throughout."""
    given = dict(operands)
    nodes, floats = list(region.nodes), []
    if absolute:
        made = {node.output: node.attrs["value"].load() for node in nodes if _is_constant(node)}
        nodes = [node for node in nodes if not _is_constant(node)]
        made |= {each: each.tensor.load() for each in region.consts if each.dtype.is_float}
        floats = list(made)
        given |= {each.name: array for each, array in made.items()}
        given = {name: np.abs(array) if array.dtype.kind == "f" else array for name, array in given.items()}
    types = {each: TensorType(dtype_of_numpy(given[each.name].dtype)) for each in (*region.inputs, *floats)}

    def constant(each: Value) -> Any:
        return None if each in types else tensor_proto(each.tensor, each.name)

    with scratch_folder() as folder:
        path = folder / "nodes.onnx"
        home = region.nodes[0].home
        inputs = [*region.inputs, *(each for each in floats if each.const is None)]
        model = export_nodes(home, nodes, inputs, [value], constants=constant, types=types)
        path.write_bytes(model.SerializeToString())
        return run_file(path, [given], optimized=False, foreign=True, fine=True)[0][value.name]


def _is_constant(node: Node) -> bool:
    """True for a node that is a constant, which files have among their operators."""
    return node.op == "Constant" and isinstance(node.attrs.get("value"), Tensor)


def _over_tiles(region: _Region, sums: np.ndarray) -> np.ndarray:
    """The largest sum of each channel, where a convolution made them."""
    if sums.ndim < 3 or not any(node.op.startswith("Conv") for node in region.nodes):
        return sums
    return np.broadcast_to(sums.max(axis=tuple(range(2, sums.ndim)), keepdims=True), sums.shape)


def _is_tensor(value: Value) -> bool:
    return value.type is None or (isinstance(value.type, TensorType) and value.dtype.kind in "fiub")


__all__ = ["Case", "Culprit", "first_fatal", "first_wrong"]
