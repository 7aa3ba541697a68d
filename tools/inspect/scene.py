"""What a picture of a graph shows: nodes as boxes, repeated blocks once, weights inside the nodes that read them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ir.analysis.repeats import Repeat, repeats
from ir.base.diag import LadingError, suggest
from ir.graph.graph import Graph, Node, Value
from ir.ops.registry import opdef
from ir.ops.roles import ROLE_OF
from ir.quant.stored_weight import DEQUANTIZE
from ir.text.printer import type_text
from tools.inspect.layered import Box, Placement, Point, layered

LARGEST = 1500
"""Boxes that one picture may have."""
CHARACTER = 7.0
HEIGHT, PILL = 46.0, 30.0
PADDING, HEAD = 18.0, 34.0
LONGEST_LABEL = 34


@dataclass
class Item:
    """One box.

    Attributes:
        key: its identity.
        kind: key of `ir.ops.roles.ROLES`, ``math``, ``input`` or ``output``.
        label, note: first and second line.
        details: what is shown when it is chosen; JSON-able.
        group: number of the repeated block it is in, or None.
    """

    key: Hashable
    kind: str
    label: str
    note: str
    details: dict[str, Any]
    group: int | None = None

    @property
    def size(self) -> tuple[float, float]:
        """Width and height for the texts."""
        width = max(len(self.label) * (CHARACTER + 0.6), len(self.note) * (CHARACTER - 1.0)) + 30
        return max(width, 64.0), HEIGHT if self.note else PILL


@dataclass(frozen=True)
class Group:
    """A repeated block that is drawn once."""

    title: str
    count: int
    details: dict[str, Any]


@dataclass
class Scene:
    """Items and edges, and after `place` where they are."""

    title: str
    items: dict[Hashable, Item] = field(default_factory=dict)
    edges: dict[tuple[Hashable, Hashable], str] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    boxes: dict[Hashable, Box] = field(default_factory=dict)
    frames: list[Box] = field(default_factory=list)
    routes: dict[tuple[Hashable, Hashable], list[Point]] = field(default_factory=dict)
    width: float = 0.0
    height: float = 0.0


def make_scene(
    graph: Graph, *, around: str | None = None, steps: int = 3, stored: Mapping[str, str] | None = None
) -> Scene:
    """The placed scene of a graph.

    Args:
        graph: the graph.
        around: name of a value; only what is at most `steps` nodes away is drawn.
        steps: see `around`.
        stored: how weights are stored, by names that the names of their constants begin with.

    Raises:
        LadingError: U930 the picture would have too many boxes, or there is no value of this name.
    """
    scene = _Maker(graph, _near(graph, around, steps) if around is not None else None, stored or {}).scene
    if len(scene.items) > LARGEST:
        message = f"the picture would have {len(scene.items)} boxes, and {LARGEST} are the limit"
        raise LadingError("U930", message, graph.name, "draw a part: --around VALUE")
    _place(scene)
    return scene


def _near(graph: Graph, name: str, steps: int) -> set[Node]:
    try:
        value = graph.value(name)
    except KeyError:
        hint = suggest(name, list(graph._names)[:20000])
        raise LadingError("U930", f"there is no value {name!r} to draw around", graph.name, hint) from None
    found = {value.producer} if value.producer is not None else {n for n in value.users if n.graph is graph}
    edge = set(found)
    for _ in range(steps):
        beside = {v.producer for node in edge for v in node.inputs if v is not None}
        beside |= {user for node in edge for v in node.outputs for user in v.users}
        edge = {node for node in beside if node is not None and node.graph is graph} - found
        found |= edge
    return found  # type: ignore[return-value]


class _Maker:
    def __init__(self, graph: Graph, only: set[Node] | None, stored: Mapping[str, str]) -> None:
        self.graph = graph
        self.stored = stored
        self.scene = Scene(graph.name)
        self.same: dict[Value, Value] = {}
        self.group_of: dict[Node, int] = {}
        self.hidden: set[Node] = set()
        self.absorbed: dict[Node, list[Node]] = {}
        self.inside: set[Node] = set()
        for index, repeat in enumerate(repeats(graph) if only is None else ()):
            self.fold(index, repeat)
        self.only = only
        self.absorb()
        shown = [node for node in graph.nodes if node not in self.hidden and (only is None or node in only)]
        self.add_inputs(shown)
        for node in shown:
            self.add_node(node)
        for node in shown:
            self.add_edges(node)
        if only is None:
            self.add_outputs()

    def fold(self, index: int, repeat: Repeat) -> None:
        """Show the first block; the values of all others stand for its values."""
        first = repeat.blocks[0]
        self.group_of.update(dict.fromkeys(first.nodes, index))
        for block in repeat.blocks[1:]:
            self.hidden.update(block.nodes)
            for one, two in zip(first.nodes, block.nodes, strict=True):
                self.same.update(zip(two.outputs, one.outputs, strict=True))
            for one, two in zip(first.reads, block.reads, strict=True):
                if one is not two:
                    self.same.setdefault(two, one)
        size = sum(value.type.size or 0 for value in first.constants)  # type: ignore[union-attr]
        details = {"block": f"{len(repeat.blocks)} times {len(first.nodes)} nodes", "from": first.entry.name,
                   "last result": repeat.blocks[-1].exit.name, "constants in each": f"{size:,} elements"}  # fmt: skip
        self.scene.groups.append(Group(f"{len(first.nodes)} nodes", len(repeat.blocks), details))

    def absorb(self) -> None:
        """Hide what one node alone computes from constants, such as a dequantized weight, inside that node."""
        for node in self.graph.nodes:
            values = [value for value in node.inputs if value is not None]
            made = all(v.const is not None or v.producer in self.inside for v in values)
            readers = {user for value in node.outputs for user in value.users}
            pinned = any(value.use_count > len(value.uses) for value in node.outputs)
            if values and made and len(readers) == 1 and not pinned and node not in self.hidden:
                (reader,) = readers
                if reader.graph is self.graph and reader not in self.hidden:
                    self.absorbed.setdefault(reader, []).extend([*self.absorbed.pop(node, ()), node])
                    self.inside.add(node)
                    self.hidden.add(node)

    def real(self, value: Value) -> Value:
        """The value that is drawn in place of one."""
        while value in self.same:
            value = self.same[value]
        return value

    # ---- items ----

    def add_inputs(self, shown: list[Node]) -> None:
        merged: dict[Value, list[Value]] = {}
        for value in self.graph.inputs:
            merged.setdefault(self.real(value), []).append(value)
        for value, several in merged.items():
            if self.only is not None and not any(user in self.only for user in value.users):
                continue
            details = {"input": value.name, "type": _type(value), "also": [item.name for item in several[1:]]}
            self._pill(("in", value), "input", value.name, several, _type(value), details)

    def add_outputs(self) -> None:
        merged: dict[tuple[Value, str], list[str]] = {}
        for value in self.graph.outputs:
            merged.setdefault((self.real(value), "output"), []).append(value.name)
        for name, value in self.graph.tables.items():
            if value.const is None:
                merged.setdefault((self.real(value), "table"), []).append(name)
        for (value, what), names in merged.items():
            details = {what: names[0], "type": _type(value), "also": names[1:]}
            key = ("out", value, what)
            self._pill(key, "output", names[0], names, _type(value), details)
            self._edge(value, key)

    def _pill(self, key, kind: str, name: str, several, type: str, details) -> None:
        label = _short(name) + (f" ×{len(several)}" if len(several) > 1 else "")
        self.scene.items[key] = Item(key, kind, label, type, {k: v for k, v in details.items() if v})

    def add_node(self, node: Node) -> None:
        weights = [value for value in self._weights(node) if (value.type.size or 0) > 1]
        main = max(weights, key=lambda value: value.type.size or 0, default=None)
        note = type_text(main.type) if main is not None else _type(node.outputs[0]) if node.outputs else ""
        note += next((f", blocks of {block}" for one in self.absorbed.get(node, ()) if (block := _block(one))), "")
        self.scene.items[node] = Item(
            node, _role(node), _short(_label(node)), _short(note, 40), self._details(node), self.group_of.get(node),
        )  # fmt: skip

    def _weights(self, node: Node) -> Iterator[Value]:
        for one in (node, *self.absorbed.get(node, ())):
            yield from (value for value in one.inputs if value is not None and value.const is not None)

    def _details(self, node: Node) -> dict[str, Any]:
        inside = self.absorbed.get(node, ())
        found: dict[str, Any] = {
            "operator": node.op,
            "meaning": _meaning(node),
            "name": node.name,
            "inputs": [f"{_sign(v)}{v.name}: {_type(v)}" if v is not None else "left out" for v in node.inputs],
            "outputs": [f"%{v.name}: {_type(v)}" for v in node.outputs],
            "attributes": [f"{name} = {_attribute(item)}" for name, item in sorted(node.attrs.items())],
            "stored as": self._stored(node),
            "weights": [repr(one) for one in inside],
            "source": node.loc,
        }
        if node in self.group_of:
            found["repeated"] = f"in each of {self.scene.groups[self.group_of[node]].count} blocks; this is the first"
        return {key: item for key, item in found.items() if item}

    def _stored(self, node: Node) -> list[str]:
        """How the weights of a node are stored, as somebody knows who knows more than the graph."""
        found = {}
        for value in self._weights(node):
            name = value.name
            while name and name not in self.stored:
                name = name.rpartition(".")[0]
            if name:
                found[name] = f"{name}: {self.stored[name]}"
        return list(found.values())

    # ---- edges ----

    def add_edges(self, node: Node) -> None:
        from ir.graph.order import reads

        for one in (node, *self.absorbed.get(node, ())):
            for value in reads(one):
                if value.const is None and value.producer not in self.inside:
                    self._edge(self.real(value), node)

    def _edge(self, value: Value, target: Hashable) -> None:
        source: Hashable = value.producer if value.producer is not None else ("in", value)
        if source in self.scene.items and source != target:
            self.scene.edges.setdefault((source, target), f"%{value.name}: {_type(value)}")


# ---- placing ----


def _place(scene: Scene) -> None:
    """Place the blocks each on its own, then everything with the blocks as boxes."""
    inner = [_place_group(scene, index) for index in range(len(scene.groups))]
    outer = [(x, y) for a, b in scene.edges if (x := _home(scene, a)) != (y := _home(scene, b))]
    sizes: dict[Hashable, tuple[float, float]] = {}
    for key, item in scene.items.items():
        home = _home(scene, key)
        if home == key:
            sizes[key] = item.size
        elif home not in sizes:
            drawn = inner[item.group]  # type: ignore[index]
            sizes[home] = (drawn.width + 2 * PADDING, drawn.height + HEAD + PADDING)
    enter, leave = {}, {}
    for a, b in scene.edges:
        x, y = _home(scene, a), _home(scene, b)
        if x != y and y != b:
            enter[x, y] = inner[y[1]].boxes["in", a].middle + PADDING  # type: ignore[index]
        if x != y and x != a:
            leave[x, y] = inner[x[1]].boxes["out", a].middle + PADDING  # type: ignore[index]
    drawn = layered(sizes, outer, enter=enter, leave=leave)
    scene.width, scene.height = drawn.width, drawn.height
    scene.boxes = {key: box for key, box in drawn.boxes.items() if key in scene.items}
    for index, one in enumerate(inner):
        frame = drawn.boxes["group", index]
        scene.frames.append(frame)
        x, y = frame.x + PADDING, frame.y + HEAD
        scene.boxes.update((key, box.moved(x, y)) for key, box in one.boxes.items() if key in scene.items)
    for a, b in scene.edges:
        scene.routes[a, b] = _joined(scene, inner, drawn, a, b)


def _home(scene: Scene, key: Hashable) -> Hashable:
    group = scene.items[key].group
    return key if group is None else ("group", group)


def _place_group(scene: Scene, index: int) -> Placement:
    sizes: dict[Hashable, tuple[float, float]] = {}
    edges, top, bottom = [], [], []
    for a, b in scene.edges:
        x, y = (scene.items[key].group == index for key in (a, b))
        if y and not x:
            top.append(("in", a))
            edges.append((("in", a), b))
        elif x and not y:
            bottom.append(("out", a))
            edges.append((a, ("out", a)))
        elif x and y:
            edges.append((a, b))
    sizes.update(dict.fromkeys(top, (10.0, 0.0)))
    sizes.update((key, item.size) for key, item in scene.items.items() if item.group == index)
    sizes.update(dict.fromkeys(bottom, (10.0, 0.0)))
    return layered(sizes, edges, top=top, bottom=bottom)


def _joined(scene: Scene, inner: list[Placement], drawn: Placement, a: Hashable, b: Hashable) -> list[Point]:
    """The route of an edge through the insides of the blocks at its ends and the space between them."""
    x, y = _home(scene, a), _home(scene, b)
    points: list[Point] = []
    if x != a:
        frame = scene.frames[x[1]]  # type: ignore[index]
        edge = (a, b) if x == y else (a, ("out", a))
        points += [(px + frame.x + PADDING, py + frame.y + HEAD) for px, py in inner[x[1]].routes[edge]]  # type: ignore[index]
    if x != y:
        points += drawn.routes[x, y]
        if y != b:
            frame = scene.frames[y[1]]  # type: ignore[index]
            points += [(px + frame.x + PADDING, py + frame.y + HEAD) for px, py in inner[y[1]].routes[("in", a), b]]  # type: ignore[index]
    return points


# ---- texts ----


def _short(text: str, limit: int = LONGEST_LABEL) -> str:
    return text if len(text) <= limit else "…" + text[len(text) - limit + 1 :]


def _role(node: Node) -> str:
    definition = opdef(node)
    return definition.role if definition is not None else ROLE_OF.get(node.op_type, "math")


def _label(node: Node) -> str:
    definition = opdef(node)
    return node.op if definition is None or definition.label is None else definition.label(node)


def _meaning(node: Node) -> str:
    """What an operator outside ONNX computes; ONNX's own texts are pages long."""
    definition = opdef(node)
    return "" if definition is None or definition.package == "onnx" else definition.doc


def _block(node: Node) -> int:
    """Elements of a quantized weight that share a scale; 0 where a whole row or the whole weight does."""
    if node.op not in DEQUANTIZE:
        return 0
    codes, scale = (value.type.shape if value is not None and value.type is not None else None
                    for value in (node.input(0), node.input(1)))  # fmt: skip
    if not codes or not scale or len(codes) != len(scale):
        return 0
    shared = [whole // part for whole, part in zip(codes, scale, strict=True)
              if isinstance(whole, int) and isinstance(part, int) and 1 < part < whole]  # fmt: skip
    return shared[0] if len(shared) == 1 else 0


def _type(value: Value) -> str:
    return "" if value.type is None else type_text(value.type)


def _sign(value: Value) -> str:
    return "@" if value.const is not None else "%"


def _attribute(item: Any) -> str:
    if isinstance(item, Graph):
        return f"graph {item.name} of {len(item.nodes)} nodes"
    text = repr(list(item)) if isinstance(item, tuple) else repr(item)
    return text if len(text) <= 80 else text[:77] + "..."


__all__ = ["Group", "Item", "Scene", "make_scene"]
