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
from typing import Literal

import numpy as np

from backends.mnn.modules.child import Converter
from backends.mnn.modules.closeness import Misfit, misfit
from backends.mnn.read.net_file import read_net
from ir.base.child import ChildFailed
from ir.base.diag import LadingError
from ir.base.scratch import scratch_folder
from ir.base.types import TensorType
from ir.evaluate.kernels import run_file
from ir.evaluate.reference import Feeds, Reference
from ir.graph.copy import copied
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.graph.order import reads
from ir.onnx.export import export_nodes

Convert = Callable[[Graph, Path], None]
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
    inside = set(read_net(case.model).get("tensorName", ()))
    shown = [value for value in case.values if value.name in inside]
    found = _Search(case, converter, case.model, shown).first()
    if found is None or not found.merged or case.convert is None:
        return found
    with scratch_folder() as folder:
        hidden = _hidden(case, found.node, inside)
        if (model := _with_outputs(case, hidden, folder)) is None:
            return found
        again = _Search(case, converter, model, [*hidden, found.node.output]).first()
    return again or found


def first_fatal(case: Case, converter: Converter) -> Culprit | None:
    """The first node that MNN does not survive; None when it survives every value by itself."""
    inside = set(read_net(case.model).get("tensorName", ()))
    shown = [value for value in case.values if value.name in inside]

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
    merged = len(_hidden(case, node, inside))
    return Culprit(node, f"is not reached: the process {how.how}", "fatal", merged)


def _hidden(case: Case, node: Node, inside: set[str]) -> list[Value]:
    """Values in front of a node, as far as the next ones that the file has, which the file does not have."""
    found: dict[Value, None] = {}
    waiting = list(reads(node))
    while waiting:
        value = waiting.pop()
        if value.producer is None or value.name in inside or value in found:
            continue
        found[value] = None
        waiting += reads(value.producer)
    return [value for value in case.values if value in found]


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


class _Search:
    def __init__(self, case: Case, converter: Converter, model: Path, shown: Sequence[Value]) -> None:
        self._case = case
        self._converter = converter
        self._model = model
        self._shown = shown
        self._inside = {value.name for value in shown}
        self._grown: Culprit | None = None

    def first(self) -> Culprit | None:
        for start in range(0, len(self._shown), CHUNK):
            part = [value for value in self._shown[start : start + CHUNK] if _is_tensor(value)]
            wanted = self._case.reference.run(self._case.feeds, [value.name for value in part])
            got = self._computed([value.name for value in part])
            for value in part:
                if value.name not in got or value.producer is None:
                    continue
                found = self._differs(wanted[value.name], got[value.name], value.name)
                if found is None:
                    continue
                merged = len(_hidden(self._case, value.producer, self._inside))
                culprit = Culprit(value.producer, found.text, merged=merged)
                if merged or not self._right_alone(value, got[value.name]):
                    return culprit
                self._grown = self._grown or Culprit(value.producer, found.text, "grown")
        return self._grown

    def _differs(self, wanted: np.ndarray, got: np.ndarray, name: str) -> Misfit | None:
        if wanted.shape != got.shape and name not in {value.name for value in self._case.original.outputs}:
            # Axes of size 1 come and go inside of a file.
            if wanted.size != got.size:
                return None
            got = got.reshape(wanted.shape)
        return misfit(wanted, got, by=self._case.reference.name, half=self._case.half)

    def _computed(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """What MNN has for some values, as far as it gives them."""
        case = self._case
        found: dict[str, np.ndarray] = {}
        with suppress(ChildFailed):
            return self._converter.run_many(self._model, [case.held], names, seconds=SECONDS)[0]
        for name in names[:MOST_ALONE]:
            with suppress(ChildFailed):
                found |= self._converter.run_many(self._model, [case.held], [name], seconds=SECONDS)[0]
        return found

    def _right_alone(self, value: Value, got: np.ndarray) -> bool:
        """True when the node gives what MNN has for a value, computed from what MNN has for its operands."""
        node = value.producer
        assert node is not None
        operands = [each for each in dict.fromkeys(reads(node)) if each.const is None]
        if not all(_is_tensor(each) for each in operands):
            return False
        try:
            given = self._operands(operands)
            wanted = _computed_alone(node, value, given)
        except (LadingError, ChildFailed):
            return False
        return self._differs(wanted, got, value.name) is None

    def _operands(self, values: Sequence[Value]) -> dict[str, np.ndarray]:
        """What MNN has for the operands of a node, in the types of the model; else what they should be."""
        case = self._case
        inner = [value.name for value in values if not value.is_input]
        wanted = {**case.feeds, **(case.reference.run(case.feeds, inner) if inner else {})}
        got = self._computed([name for name in inner if name in self._inside])
        found = {}
        for value in values:
            right, mine = wanted[value.name], got.get(value.name)
            fits = mine is not None and mine.size == right.size
            found[value.name] = mine.reshape(right.shape).astype(right.dtype) if mine is not None and fits else right
        return found


def _computed_alone(node: Node, value: Value, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    """One output of a node for its operands, by onnxruntime."""
    from ir.base.types import dtype_of_numpy

    inputs = [each for each in dict.fromkeys(reads(node)) if each.const is None]
    types = {each: TensorType(dtype_of_numpy(operands[each.name].dtype)) for each in inputs}
    with scratch_folder() as folder:
        path = folder / "node.onnx"
        path.write_bytes(export_nodes(node.home, [node], inputs, [value], types=types).SerializeToString())
        return run_file(path, [operands], optimized=False, foreign=True)[0][value.name]


def _is_tensor(value: Value) -> bool:
    return value.type is None or (isinstance(value.type, TensorType) and value.dtype.kind in "fiub")


__all__ = ["Case", "Culprit", "first_fatal", "first_wrong"]
