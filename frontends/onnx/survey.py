"""What an ONNX message says of itself, whether or not it is a model that can be read: names, types, operators.

Nothing is refused here. A tensor that is read and never made, an input without a type, an operator of an unknown
domain are what is looked for; `frontends.onnx.load` says what of it makes a file unreadable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from frontends.onnx.order import captured, defined, subgraphs
from ir.base.types import dtype_of_onnx

ONNX_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Domains whose operators the format itself describes."""

_CODES = {f"tensor({name.lower()})": code for name, code in onnx.TensorProto.DataType.items()}
"""Element types by what descriptions of operators call them."""


@dataclass(frozen=True)
class Reading:
    """One place where a tensor is read.

    Attributes:
        op: the operator.
        node: name of the node, or of the first tensor that it makes.
        operand: which operand, counted from 0.
        word: what the operator calls this operand; empty when it is not known.
        types: element types that the operator takes there; empty when it is not known.
        last: no operand behind this one is there.
        optional: the operator can do without it.
        inside: it is read in a body of the node, such as a branch.
    """

    op: str
    node: str
    operand: int
    word: str = ""
    types: frozenset[str] = frozenset()
    last: bool = True
    optional: bool = False
    inside: bool = False

    def __str__(self) -> str:
        place = "in a body" if self.inside else self.word or f"operand {self.operand}"
        return f"{self.op} {self.node!r} ({place})"


@dataclass(frozen=True)
class Lost:
    """A tensor that is read and that nothing makes: no input, no weight, no operator.

    Attributes:
        name: its name.
        readings: where it is read.
        output: the model returns it.
    """

    name: str
    readings: tuple[Reading, ...]
    output: bool = False

    @property
    def types(self) -> tuple[str, ...]:
        """Element types that every reader takes; empty when no reader says."""
        told = [reading.types for reading in self.readings if reading.types]
        return tuple(sorted(frozenset.intersection(*told))) if told else ()


@dataclass(frozen=True)
class Port:
    """An input or output as it is declared.

    Attributes:
        name: its name.
        dtype: element type; empty when none is declared.
        shape: sizes and names of its dimensions, "?" for one of neither; None when the number of axes is open.
        made: an output is made by something, an input is read by something.
    """

    name: str
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None
    made: bool = True

    def __str__(self) -> str:
        axes = "" if self.shape is None else f"[{', '.join(map(str, self.shape))}]"
        return f"{self.dtype or 'no type'}{axes}"


@dataclass(frozen=True)
class Survey:
    """What a message says.

    Attributes:
        opsets: version of each imported operator set, by domain.
        inputs, outputs: as declared; inputs with a default or that are weights left out.
        lost: tensors that are read and never made.
        operators: how often each operator is used, by domain and name, bodies and functions included.
        functions: operators that the model itself defines.
        stored: element types of weights, how often.
    """

    opsets: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    lost: tuple[Lost, ...]
    operators: Mapping[tuple[str, str], int]
    functions: frozenset[tuple[str, str]] = frozenset()
    stored: Mapping[str, int] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """Number of nodes, those of bodies and functions included."""
        return sum(self.operators.values())


def survey(model: onnx.ModelProto) -> Survey:
    """What a message says; text that is no text is shown as it is."""
    graph = model.graph
    opsets = {_domain(item.domain): item.version for item in model.opset_import}
    given = {item.name for item in graph.initializer} | {item.values.name for item in graph.sparse_initializer}
    made = defined(graph)
    read = {name for node in graph.node for name in (*node.input, *_inner(node))} | {out.name for out in graph.output}
    counted: Counter[tuple[str, str]] = Counter()
    for body in (graph, *model.functions):
        counted.update((_domain(node.domain), _text(node.op_type)) for node in _nodes(body))
    return Survey(
        opsets,
        tuple(_port(item, item.name in read) for item in graph.input if item.name not in given),
        tuple(_port(item, item.name in made) for item in graph.output),
        tuple(_lost(graph, made, opsets)),
        dict(counted),
        frozenset((_domain(item.domain), _text(item.name)) for item in model.functions),
        dict(Counter(_dtype(item.data_type) for item in graph.initializer)),
    )


def _text(item: str | bytes) -> str:
    """Text as the message has it, and what is none as it can be shown."""
    return item if isinstance(item, str) else item.decode("utf-8", "backslashreplace")


def _domain(item: str | bytes) -> str:
    text = _text(item)
    return "" if text == "ai.onnx" else text


def _nodes(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [body]
    while waiting:
        for node in waiting.pop().node:
            yield node
            waiting += subgraphs(node)


def _inner(node: onnx.NodeProto) -> Iterator[str]:
    for body in subgraphs(node):
        yield from captured(body)


def _dtype(code: int) -> str:
    """Name of an element type, empty for none."""
    try:
        return dtype_of_onnx(code).name if code else ""
    except KeyError:
        return f"type {code}"


def _port(item: onnx.ValueInfoProto, made: bool) -> Port:
    kind = item.type.WhichOneof("value")
    if kind != "tensor_type":
        return Port(_text(item.name), kind.removesuffix("_type") if kind else "", None, made)
    tensor = item.type.tensor_type
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else _text(dim.dim_param) or "?"
            for dim in tensor.shape.dim
        )
    return Port(_text(item.name), _dtype(tensor.elem_type), shape, made)


def _lost(graph: onnx.GraphProto, made: set[str], opsets: Mapping[str, int]) -> Iterator[Lost]:
    """Tensors that are read and never made, in the order in which they are read."""
    found: dict[str, list[Reading]] = {}
    for node in graph.node:
        last = max((place for place, name in enumerate(node.input) if name in made), default=-1)
        for place, name in enumerate(node.input):
            if name and name not in made:
                found.setdefault(name, []).append(_reading(node, place, opsets, place > last))
        for name in _inner(node):
            if name not in made:
                found.setdefault(name, []).append(Reading(_text(node.op_type), _label(node), -1, inside=True))
    returned = {item.name for item in graph.output}
    for name in returned - made - found.keys():
        found[name] = []
    for name, readings in found.items():
        yield Lost(_text(name), tuple(readings), name in returned)


def _label(node: onnx.NodeProto) -> str:
    return _text(node.name or next(iter(node.output), node.op_type))


def _reading(node: onnx.NodeProto, place: int, opsets: Mapping[str, int], last: bool) -> Reading:
    """A reading with what the operator's own description says of the operand."""
    domain = _domain(node.domain)
    try:
        schema = onnx.defs.get_schema(_text(node.op_type), opsets.get(domain, 1), domain)
    except (onnx.defs.SchemaError, TypeError):
        return Reading(_text(node.op_type), _label(node), place, last=last)
    formal = schema.inputs[min(place, len(schema.inputs) - 1)] if schema.inputs else None
    if formal is None:
        return Reading(_text(node.op_type), _label(node), place, last=last)
    options = onnx.defs.OpSchema.FormalParameterOption
    word = "" if formal.option == options.Variadic else formal.name
    types = frozenset(_dtype(code) for text in formal.types if (code := _CODES.get(text)) is not None)
    return Reading(_text(node.op_type), _label(node), place, word, types, last, formal.option == options.Optional)


__all__ = ["ONNX_DOMAINS", "Lost", "Port", "Reading", "Survey", "survey"]
