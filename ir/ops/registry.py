"""The operator table: arity, attributes, traits, inference and meaning of every operator the IR may hold.

ONNX operators are read from ONNX's own schemas at the opset of the graph, never retyped. Operators of other domains are
`OpDef` rows; each has a definition in ONNX terms, so that every stage of a graph can be run and exported. Plugins add
rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ir.base.plugins import rows_of
from ir.base.tables import Table
from ir.base.types import Dim, Shape, TensorType
from ir.graph.graph import OPSET, Graph, Node, Value
from ir.ops.roles import ROLE_OF

ANY = 1 << 30
"""Number of inputs or outputs of a variadic operator."""

USUAL = Path(__file__).with_name("usual.json")
"""What ONNX's schemas say of usual operators; written by the test that compares it with them, with ``--accept``."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMUTATIVE = _names("Add And BitwiseAnd BitwiseOr BitwiseXor Equal Max Mean Min Mul Or Sum Xor")
ELEMENTWISE = _names(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike "
    "Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity "
    "IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
NORMS = _names("LayerNormalization RMSNormalization")
RANDOM = _names("Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike")
_ALONG_AXIS = _names(
    "Softmax LogSoftmax Hardmax LayerNormalization RMSNormalization LpNormalization CumSum ArgMax ArgMin TopK Split "
    "Concat GatherElements"
)
_FIRST_AXIS = {"Concat": 1, "GatherElements": 0, "CumSum": None, "ArgMax": 0, "ArgMin": 0, "Split": 0}


@dataclass(frozen=True, slots=True)
class AttrDef:
    """One attribute.

    Attributes:
        name: its name.
        kind: ``int``, ``float``, ``str``, ``tensor``, ``graph``, ``type_proto``, ``sparse_tensor``, or with an ``s`` a
            tuple of these.
        default: value when it is left out; None when there is none.
        required: it cannot be left out.
        choices: the legal values of a string; empty when any is.
    """

    name: str
    kind: str
    default: Any = None
    required: bool = False
    choices: frozenset[str] = frozenset()


@dataclass(frozen=True)
class OpDef:
    """One operator.

    Attributes:
        name: ``Op`` or ``domain.Op``.
        inputs: names of the inputs.
        min_inputs, max_inputs, min_outputs, max_outputs: arity; `ANY` for variadic operators. Inputs behind
            `min_inputs` may be left out.
        left_out: indices of inputs before the last needed one that may be left out all the same.
        attrs: attributes by name.
        traits: subset of ``elementwise`` (broadcasting, each result element from one element of each operand),
            ``commutative``, ``pure`` (same inputs, same outputs, no effect), ``random``, ``stateful``,
            ``constant_foldable``, ``positional`` (moves elements without computing), ``conversion`` (to the element
            type that the attribute ``to`` names), ``mixing`` (joins positions of a sequence).
        infer: result types, for operators of other domains; see `ir.infer.rule_table.rule`. None: ONNX's own inference.
        follow: contents of the result when it is a small integer tensor; see `ir.infer.rule_table.follows`.
        define: builds the meaning with ONNX operators, see `ir.ops.meaning.Body`; None for ONNX operators.
        weight_input: index of the matrix ``[in, out]`` that the channels of the first input are multiplied by, in
            linear layers; None for other operators.
        channel_axis: axis of the first input that holds the channels of a linear layer.
        rowwise: whether output row i (all axes but the last) needs only row i of the given input; see `is_rowwise`.
        role: what the operator is to a reader of a picture, a key of `ir.ops.roles.ROLES` or ``math``.
        label: how a node is called in a picture; None: by the name of its operator.
        package: the import package that registered it.
        native: onnxruntime computes it by itself, so that graphs are run with it as it is and no definition is needed;
            newer releases may know more of its attributes, and more operators of its domain, than are listed.
        doc: what it computes.
    """

    name: str
    inputs: tuple[str, ...] = ()
    min_inputs: int = 1
    max_inputs: int = 1
    min_outputs: int = 1
    max_outputs: int = 1
    left_out: frozenset[int] = frozenset()
    attrs: Mapping[str, AttrDef] = field(default_factory=dict)
    traits: frozenset[str] = frozenset({"pure", "constant_foldable"})
    infer: Callable[[Any, Node], Any] | None = None
    follow: Callable[[Any, Node], Any] | None = None
    define: Callable[[Any], Sequence[Value]] | None = None
    weight_input: int | None = None
    channel_axis: int = -1
    rowwise: Callable[[Node, int], bool] | None = None
    role: str = "math"
    label: Callable[[Node], str] | None = None
    package: str = "ir"
    native: bool = False
    doc: str = ""

    def has(self, trait: str) -> bool:
        """True when the operator has a trait."""
        return trait in self.traits


def check_definition(name: str, definition: OpDef) -> None:
    """ValueError for a definition that is listed under another name or has no domain, a mistake of its author."""
    if definition.name != name:
        raise ValueError(f"the operator {definition.name!r} is listed as {name!r}")
    if "." not in name and not definition.native:
        raise ValueError(f"operator {name!r} needs a domain; ONNX operators come from ONNX's schemas")


DIALECTS: Table[Sequence[OpDef]] = Table(
    "dialect",
    {
        "lading": "ir.dialects.lading:DEFINITIONS",
        "com.microsoft": "ir.dialects.microsoft:DEFINITIONS",
        "LlmExporter": "ir.dialects.llm_exporter:DEFINITIONS",
    },
    rows_of("dialects"),
)
"""The operators of whole domains, by domain. Open to plugins."""
NO_RUNTIMES = frozenset({"lading", "com.microsoft", "LlmExporter"})
"""Domains whose operators come from exporters or from here, not from legalization for a runtime."""


def _of_dialects() -> Iterator[tuple[str, OpDef, str]]:
    yield from rows_of("ops")()
    for domain in DIALECTS:
        for definition in DIALECTS[domain]:
            yield definition.name, definition, DIALECTS.package(domain)


OPERATORS: Table[OpDef] = Table("operator", {}, _of_dialects, check_definition)
"""Operators of domains other than ONNX's, by name. Open to plugins."""


def lookup(op: str, opsets: Mapping[str, int] | None = None) -> OpDef | None:
    """The definition of an operator at the opsets of a graph, or None when nobody knows it."""
    domain, _, name = op.rpartition(".")
    if domain in ("", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training"):
        found = _onnx_definition(domain, name, (opsets or {}).get(domain, OPSET if not domain else 1 << 20))
        return found if found is not None or domain else OPERATORS.get(op)
    return OPERATORS.get(op)


def opdef(node: Node) -> OpDef | None:
    """The definition of a node's operator, or None when nobody knows it."""
    return lookup(node.op, opsets_of(node.graph))


def has_trait(node: Node, trait: str) -> bool:
    """True when the operator of a node is known and has a trait."""
    definition = opdef(node)
    return definition is not None and definition.has(trait)


def root_of(graph: Graph) -> Graph:
    """The outermost graph around a graph."""
    while graph.parent is not None:
        graph = graph.parent
    return graph


def opsets_of(graph: Graph | None) -> Mapping[str, int]:
    """The opsets of the root graph; empty for an erased node's."""
    return root_of(graph).opsets if graph is not None else {}


def attribute(node: Node, name: str) -> Any:
    """An attribute of a node, its default when it is left out, or None."""
    found = node._attrs.get(name)
    if found is not None:
        return found
    definition = opdef(node)
    described = definition.attrs.get(name) if definition is not None else None
    return described.default if described is not None else None


# ---- ONNX schemas ----


@lru_cache(maxsize=4096)
def schema_of(domain: str, name: str, opset: int) -> Any:
    """The ``onnx.defs.OpSchema`` of an operator at an opset, or None when there is none."""
    from onnx import defs

    newest = defs.onnx_opset_version() if not domain else 1 << 20
    if opset < 1:
        return None
    try:
        return defs.get_schema(name, min(opset, newest), domain)
    # A name that is no text is a TypeError there, or a UnicodeEncodeError.
    except (defs.SchemaError, TypeError, UnicodeError):
        return None


@lru_cache(maxsize=4096)
def _onnx_definition(domain: str, name: str, opset: int) -> OpDef | None:
    row = _usual_rows().get(name) if not domain and opset == OPSET else None
    if row is None:
        row = schema_row(domain, name, opset)
    if row is None:
        return None
    inputs, (least_in, most_in, least_out, most_out), attrs = row
    return OpDef(
        name=f"{domain}.{name}" if domain else name,
        inputs=tuple(inputs),
        min_inputs=least_in,
        max_inputs=most_in,
        min_outputs=least_out,
        max_outputs=most_out,
        attrs={name: AttrDef(name, kind, _hashable(default), need) for name, (kind, default, need) in attrs.items()},
        traits=_onnx_traits(name),
        rowwise=_onnx_rowwise,
        weight_input=1 if name in ("MatMul", "Gemm") else None,
        role=ROLE_OF.get(name, "math"),
        package="onnx",
    )


@cache
def _usual_rows() -> Mapping[str, Any]:
    """What `schema_row` gives at `OPSET` for the operators of decoders: ONNX's package takes longer to load than they
    take to compile."""
    return json.loads(USUAL.read_bytes())


def schema_row(domain: str, name: str, opset: int) -> list[Any] | None:
    """What ONNX's schema says of an operator; None when there is no such schema.

    Returns:
        Names of the inputs; least and most inputs, least and most outputs; kind, default and whether it is needed of each
        attribute, by name. JSON-able unless a default is a tensor or the like.
    """
    schema = schema_of(domain, name, opset)
    if schema is None:
        return None
    most = [min(count, ANY) for count in (schema.max_input, schema.max_output)]
    return [
        [formal.name for formal in schema.inputs],
        [schema.min_input, most[0], schema.min_output, most[1]],
        {name: _attribute_row(attr) for name, attr in schema.attributes.items()},
    ]


def _attribute_row(attr: Any) -> list[Any]:
    from onnx import helper

    kind = str(attr.type).rpartition(".")[2].lower()
    kind = {"string": "str", "strings": "strs"}.get(kind, kind)
    default = None
    if attr.default_value is not None and attr.default_value.name:
        default = helper.get_attribute_value(attr.default_value)
        default = default.decode() if isinstance(default, bytes) else default
    return [kind, default, attr.required]


def _hashable(default: Any) -> Any:
    return tuple(default) if isinstance(default, list) else default


def _onnx_traits(name: str) -> frozenset[str]:
    traits = set()
    if name in RANDOM:
        traits.add("random")
    else:
        traits |= {"pure", "constant_foldable"}
    if name in ELEMENTWISE:
        traits.add("elementwise")
    if name in COMMUTATIVE:
        traits.add("commutative")
    if name in ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"):
        traits.add("positional")
    if name == "Cast":
        traits.add("conversion")
    if name in ("Softmax", "Attention", "RMSNormalization", "LayerNormalization"):
        traits.add("mixing")
    return frozenset(traits)


# ---- rows ----


def is_rowwise(node: Node, index: int = 0) -> bool:
    """True when row i of every output needs only row i of input `index`, and whole or equal rows of the others.

    A row is one position of all axes but the last. Unknown operators are not row-wise.
    """
    definition = opdef(node)
    if definition is None:
        return False
    if definition.has("elementwise"):
        return _same_rows(node, index)
    return definition.rowwise is not None and definition.rowwise(node, index)


def _same_rows(node: Node, index: int) -> bool:
    """True when broadcasting keeps the rows of input `index` in place."""
    result, operand = node.outputs[0].shape, node.operand(index).shape
    if result is None or operand is None:
        return False
    return len(operand) == len(result) and all(a == b for a, b in zip(operand[:-1], result[:-1], strict=True))


def _onnx_rowwise(node: Node, index: int) -> bool:
    operand = node.inputs[index]
    x = operand.type if operand is not None else None
    if not isinstance(x, TensorType) or x.shape is None or not x.shape:
        return False
    last = len(x.shape) - 1
    if node.op in ("MatMul", "Gemm"):
        return index == 0 and not node._attrs.get("transA") and rank_of(node.inputs[1]) == 2
    if node.op in _ALONG_AXIS:
        axis = node._attrs.get("axis", _FIRST_AXIS.get(node.op, -1))
        return axis in (-1, last) and (index == 0 or node.op in ("Concat", "GatherElements"))
    if node.op.startswith("Reduce"):
        axes = node._attrs.get("axes", ())
        given = node.input(1)
        if given is not None and given.const is not None:
            axes = tuple(int(axis) for axis in given.const.load().reshape(-1))
        return index == 0 and bool(axes) and all(a in (-1, last) for a in axes) and bool(attribute(node, "keepdims"))
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return index == 0 and (rank_of(node.inputs[1]) == 0 or attribute(node, "axis") in (-1, last))
    if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Flatten"):
        return index == 0 and _keeps_rows(node, x.shape)
    if node.op == "Slice":
        axes = node.input(3)
        return index == 0 and axes is not None and axes.const is not None and {*axes.const.load()} <= {-1, last}
    return index == 0 and node.op == "Dropout"


def _keeps_rows(node: Node, before: Shape) -> bool:
    """True when another shape leaves rows of the last axis as they are, in their order, however many there are: at most
    one outer axis has more than one element, and the shape says no number for it."""
    after = node.outputs[0].shape
    if not after or after[-1] != before[-1]:
        return False
    shape = node.input(1)
    if node.op == "Reshape" and (shape is None or shape.const is None):
        return False
    outer = [[dim for dim in dims[:-1] if dim != 1] for dims in (before, after)]
    return outer[0] == outer[1] and len(outer[0]) < 2 and all(isinstance(dim, Dim) for dim in outer[0])


def rank_of(value: Value | None) -> int | None:
    return value.type.rank if value is not None and isinstance(value.type, TensorType) else None


# ---- definitions in ONNX terms ----


# ---- checks ----


__all__ = [
    "ANY",
    "DIALECTS",
    "OPERATORS",
    "AttrDef",
    "OpDef",
    "attribute",
    "has_trait",
    "is_rowwise",
    "lookup",
    "opdef",
]
