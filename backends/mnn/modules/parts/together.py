"""Put the net of a graph that was taken apart together: a graph of the net for each part, an operator for each choice."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from backends.mnn.modules.edit.net import Net, Operator, reference
from backends.mnn.modules.edit.relink import Item, New, Objects, Old, Scalar, Text, copied, relink, vector
from backends.mnn.modules.parts.apart import Choice, Joint, Loop, Part
from backends.mnn.read.net_file import OPS, PARAMETERS, number_kinds, slot_of
from ir.base.diag import LadingError

NUMBERS = {name: number for number, name in OPS.items()}
"""Numbers of operators."""

Step = Operator | Joint
"""What a graph of the net computes one after the other."""


def together(path: Path, joints: Sequence[Joint], outputs: Sequence[str], out: Path) -> None:
    """Write a net whose bodies of choices and loops are graphs of their own; weights beside it stay where they are.

    Args:
        path: what the converter made of a flat graph, and what may have been edited since.
        joints: how its parts belong together.
        outputs: names of the outputs of the main graph, in their order.
        out: the file to write.

    Raises:
        LadingError: B774 a value that joins two parts is not in the net, B791 the file would be too large.
    """
    net = Net(path)
    out.write_bytes(relink(net.buffer, _Joined(net, joints).root(outputs)))


class _Joined:
    def __init__(self, net: Net, joints: Sequence[Joint]) -> None:
        self._net = net
        self._joints = {name: joint for joint in joints for name in joint.results}
        self._parts = [part for joint in joints for part in joint.parts]
        self._graphs = {part: f"part{number}" for number, part in enumerate(self._parts)}
        self._names = net.names
        self._index = {name: number for number, name in enumerate(self._names)}
        for name in self._joints:
            if name not in self._index:
                self._index[name] = len(self._names)
                self._names.append(name)
        self._makers = {number: operator for operator in net.levels[0] for number in operator.outputs}
        self._place = {operator: number for number, operator in enumerate(net.levels[0])}

    def root(self, outputs: Sequence[str]) -> New:
        """The net."""
        inner = {own for part in self._parts for _, own in part.inputs}
        own = [
            self._names[number]
            for operator in self._net.levels[0]
            if operator.type == "Input"
            for number in operator.outputs
            if self._names[number] not in inner and self._names[number] not in self._joints
        ]
        # What a graph of the net calls must come before it: loops that the converter made of operators, then inner parts.
        loops = [Old(body.position) for body in self._net.root.tables(slot_of("Net", "subgraphs")) or ()]
        graphs = [self._graph(part) for part in reversed(self._parts)]
        changes: dict[int, Item | None] = {
            slot_of("Net", "oplists"): self._written([*own, *outputs]),
            slot_of("Net", "outputName"): _texts(outputs),
            slot_of("Net", "tensorName"): self._tensors(),
            slot_of("Net", "subgraphs"): Objects((*loops, *graphs)),
        }
        return copied(self._net.root, number_kinds("Net"), changes)

    def _graph(self, part: Part) -> New:
        inputs = [own for _, own in part.inputs]
        fields: dict[str, Item | None] = {
            "name": Text(self._graphs[part]),
            "inputs": vector([self._number(name) for name in inputs], "<i4"),
            "outputs": vector([self._number(name) for name in part.outputs], "<i4"),
            "tensors": self._tensors(),
            "nodes": self._written([*inputs, *part.outputs]),
            "extraTensorDescribe": reference(self._net.root, slot_of("Net", "extraTensorDescribe")),
        }
        return New({slot_of("SubGraphProto", name): item for name, item in fields.items() if item is not None})

    def _tensors(self) -> Item:
        """Names of all tensors, by which those of every graph are numbered."""
        return _texts(self._names)

    def _number(self, name: str) -> int:
        found = self._index.get(name)
        if found is None:
            message = f"the converted model has no tensor {name!r}, by which two graphs are joined"
            raise LadingError("B774", message, hint="please report the model; --to onnx runs it in onnxruntime")
        return found

    def _written(self, ends: Iterable[str]) -> Objects:
        return Objects(tuple(self._step(step) for step in self._ordered(ends)))

    def _ordered(self, ends: Iterable[str]) -> list[Step]:
        """What has to be computed for some values, in the order of the net; what makes an operand comes before."""
        waiting = [self._number(name) for name in ends]
        before: dict[Step, list[Step]] = {}
        while waiting:
            step = self._maker(waiting.pop())
            if step not in before:
                read = self._read(step)
                before[step] = [self._maker(number) for number in read]
                waiting += read
        behind: dict[Step, list[Step]] = {step: [] for step in before}
        missing = {step: len(set(makers)) for step, makers in before.items()}
        for step, makers in before.items():
            for maker in set(makers):
                behind[maker].append(step)
        ready = [(self._rank(step), number, step) for number, step in enumerate(before) if not missing[step]]
        heapq.heapify(ready)
        found: list[Step] = []
        while ready:
            *_, step = heapq.heappop(ready)
            found.append(step)
            for reader in behind[step]:
                missing[reader] -= 1
                if not missing[reader]:
                    heapq.heappush(ready, (self._rank(reader), len(found) + len(before), reader))
        return found

    def _maker(self, number: int) -> Step:
        name = self._names[number]
        if name in self._joints:
            return self._joints[name]
        return self._makers[number]

    def _rank(self, step: Step) -> int:
        return self._place[step] if isinstance(step, Operator) else len(self._place)

    def _read(self, step: Step) -> list[int]:
        return step.inputs if isinstance(step, Operator) else [self._number(name) for name in _given(step)]

    def _step(self, step: Step) -> New | Old:
        if isinstance(step, Operator):
            return Old(step.table.position)
        kind, main = self._chosen(step) if isinstance(step, Choice) else self._repeated(step)
        parameter = f"{kind}Param"
        fields: dict[str, Item] = {
            "inputIndexes": vector(self._read(step), "<i4"),
            "main_type": Scalar("B", PARAMETERS.index(parameter)),
            "main": New({slot_of(parameter, name): item for name, item in main.items()}),
            "name": Text(step.name),
            "outputIndexes": vector([self._number(name) for name in step.results], "<i4"),
            "type": Scalar("i", NUMBERS[kind]),
        }
        return New({slot_of("Op", name): item for name, item in fields.items()})

    def _chosen(self, choice: Choice) -> tuple[str, dict[str, Item]]:
        """An operator that finds inputs and outputs of its graphs by their names."""
        pairs = zip(choice.then.outputs, choice.other.outputs, strict=True)
        return "If", {
            "then_graph": Text(self._graphs[choice.then]),
            "else_graph": Text(self._graphs[choice.other]),
            "aliases_inputs": Objects((New({}), *(_named(own) for own in _held(choice).values()))),
            "aliases_outputs": Objects(tuple(_named(pair) for pair in pairs)),
        }

    def _repeated(self, loop: Loop) -> tuple[str, dict[str, Item]]:
        """An operator that finds them by their places, as there is no graph for the condition."""
        return "While", {"body_graph": Text(self._graphs[loop.body])}


def _held(choice: Choice) -> Mapping[str, list[str]]:
    """Values that the sides of a choice read, with the inputs of the sides that hold them."""
    found: dict[str, list[str]] = {}
    for value, own in (*choice.then.inputs, *choice.other.inputs):
        found.setdefault(value, []).append(own)
    return found


def _given(joint: Joint) -> list[str]:
    """What an operator with graphs of its own reads."""
    if isinstance(joint, Choice):
        return [joint.condition, *_held(joint)]
    return [value for value, _ in joint.body.inputs]


def _texts(names: Iterable[str]) -> Objects:
    return Objects(tuple(Text(name) for name in names))


def _named(names: Iterable[str]) -> New:
    return New({slot_of("StringVec", "data"): _texts(names)})


__all__ = ["together"]
