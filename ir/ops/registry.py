"""The operator table: arity, attributes, traits, inference and meaning of every operator the IR may hold.

ONNX operators are read from ONNX's own schemas at the opset of the graph, never retyped. Operators of other domains are
`OpDef` rows; each has a definition in ONNX terms, so that every stage of a graph can be run and exported. Further
packages add rows with `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ir.base.diag import Diagnostic, suggest
from ir.base.types import TensorType, ValueType
from ir.graph.graph import OPSET, Graph, Node, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor

ANY = 1 << 30
"""Number of inputs or outputs of a variadic operator."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


COMMUTATIVE = _names("Add And BitwiseAnd BitwiseOr BitwiseXor Equal Max Mean Min Mul Or Sum Xor")
ELEMENTWISE = _names(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike "
    "Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity "
    "IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
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
        attrs: attributes by name.
        traits: subset of ``elementwise`` (broadcasting, each result element from one element of each operand),
            ``commutative``, ``pure`` (same inputs, same outputs, no effect), ``random``, ``stateful``,
            ``constant_foldable``, ``positional`` (moves elements without computing).
        infer: result types; see `ir.infer.engine.rule`. None: ONNX's own inference.
        define: builds the meaning with ONNX operators; None for ONNX operators.
        rowwise: whether output row i (all axes but the last) needs only row i of the given input; see `is_rowwise`.
        package: the import package that registered it.
        doc: what it computes.
    """

    name: str
    inputs: tuple[str, ...] = ()
    min_inputs: int = 1
    max_inputs: int = 1
    min_outputs: int = 1
    max_outputs: int = 1
    attrs: Mapping[str, AttrDef] = field(default_factory=dict)
    traits: frozenset[str] = frozenset({"pure", "constant_foldable"})
    infer: Callable[[Any, Node], Any] | None = None
    define: Callable[[Body], Sequence[Value]] | None = None
    rowwise: Callable[[Node, int], bool] | None = None
    package: str = "ir"
    doc: str = ""

    def has(self, trait: str) -> bool:
        """True when the operator has a trait."""
        return trait in self.traits


_OWN: dict[str, OpDef] = {}
_loaded = False


def register(definition: OpDef) -> OpDef:
    """Add an operator of a domain other than ONNX's.

    Raises:
        ValueError: the name has no domain, or another package has it.
    """
    if "." not in definition.name:
        raise ValueError(f"operator {definition.name!r} needs a domain; ONNX operators come from ONNX's schemas")
    known = _OWN.get(definition.name)
    if known is not None and known is not definition:
        raise ValueError(
            f"operator {definition.name!r} is registered by {known.package!r} and again by {definition.package!r}"
        )
    _OWN[definition.name] = definition
    if definition.infer is not None:
        from ir.infer.engine import RULES

        RULES[definition.name] = definition.infer
    return definition


def load_own() -> Mapping[str, OpDef]:
    """The operators of other domains by name, those of this package included."""
    global _loaded
    if not _loaded:
        _loaded = True
        from backends.mnn.dialect import activations as ops_mnn_activations
        from backends.mnn.dialect import operators as ops_mnn
        from backends.mnn.dialect import packed as ops_mnn_fused
        from ir.dialects import lading as ops_lading

        for module in (ops_lading, ops_mnn, ops_mnn_activations, ops_mnn_fused):
            for definition in module.DEFINITIONS:
                register(definition)
    return _OWN


def lookup(op: str, opsets: Mapping[str, int] | None = None) -> OpDef | None:
    """The definition of an operator at the opsets of a graph, or None when nobody knows it."""
    domain, _, name = op.rpartition(".")
    if domain in ("", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training"):
        return _onnx_definition(domain, name, (opsets or {}).get(domain, OPSET if not domain else 1 << 20))
    return _OWN.get(op) or load_own().get(op)


def opdef(node: Node) -> OpDef | None:
    """The definition of a node's operator, or None when nobody knows it."""
    return lookup(node.op, opsets_of(node.graph))


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
    try:
        return defs.get_schema(name, min(opset, newest), domain)
    except defs.SchemaError:
        return None


@lru_cache(maxsize=4096)
def _onnx_definition(domain: str, name: str, opset: int) -> OpDef | None:
    schema = schema_of(domain, name, opset)
    if schema is None:
        return None
    from ir.infer.engine import rule_table

    return OpDef(
        name=f"{domain}.{name}" if domain else name,
        inputs=tuple(formal.name for formal in schema.inputs),
        min_inputs=schema.min_input,
        max_inputs=min(schema.max_input, ANY),
        min_outputs=schema.min_output,
        max_outputs=min(schema.max_output, ANY),
        attrs={name: _onnx_attribute(attr) for name, attr in schema.attributes.items()},
        traits=_onnx_traits(name),
        infer=rule_table().get(name),
        rowwise=_onnx_rowwise,
        package="onnx",
        doc=schema.doc or "",
    )


def _onnx_attribute(attr: Any) -> AttrDef:
    from onnx import helper

    kind = str(attr.type).rpartition(".")[2].lower()
    kind = {"string": "str", "strings": "strs"}.get(kind, kind)
    default = None
    if attr.default_value is not None and attr.default_value.name:
        default = helper.get_attribute_value(attr.default_value)
        default = default.decode() if isinstance(default, bytes) else default
        default = tuple(default) if isinstance(default, list) else default
    return AttrDef(attr.name, kind, default, attr.required)


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
    result, operand = node.outputs[0].shape, node.inputs[index].shape  # type: ignore[union-attr]
    if result is None or operand is None:
        return False
    return len(operand) == len(result) and all(a == b for a, b in zip(operand[:-1], result[:-1], strict=True))


def _onnx_rowwise(node: Node, index: int) -> bool:
    x = node.inputs[index].type if node.inputs[index] is not None else None  # type: ignore[union-attr]
    if not isinstance(x, TensorType) or x.shape is None or not x.shape:
        return False
    last = len(x.shape) - 1
    if node.op in ("MatMul", "Gemm"):
        return index == 0 and not node._attrs.get("transA") and _rank(node.inputs[1]) == 2
    if node.op in _ALONG_AXIS:
        axis = node._attrs.get("axis", _FIRST_AXIS.get(node.op, -1))
        return axis in (-1, last) and (index == 0 or node.op in ("Concat", "GatherElements"))
    if node.op.startswith("Reduce"):
        axes = node._attrs.get("axes")
        given = node.input(1)
        if given is not None and given.const is not None:
            axes = tuple(int(axis) for axis in given.const.load().reshape(-1))
        return index == 0 and bool(axes) and all(a in (-1, last) for a in axes) and bool(attribute(node, "keepdims"))
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return index == 0 and (_rank(node.inputs[1]) == 0 or attribute(node, "axis") in (-1, last))
    return False


def _rank(value: Value | None) -> int | None:
    return value.type.rank if value is not None and isinstance(value.type, TensorType) else None


# ---- definitions in ONNX terms ----

OLDEST = 13
"""First opset in which operators of other domains can be defined."""


class Body:
    """Builds the meaning of one node with ONNX operators.

    Attributes:
        node: the node that is defined; its attributes and the element types and ranks of its inputs may be used.
        graph: the body, whose inputs stand for those of the node.
        inputs: the body's inputs; None where the node leaves an input out.
        opset: version of the ONNX operators, that of the node's graph; `OLDEST` or later.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.opset = opsets_of(node.graph).get("", OPSET)
        if self.opset < OLDEST:
            raise ValueError(f"it needs opset {OLDEST} or later, the graph has {self.opset}")
        self.graph = Graph(node.op_type, {"": self.opset})
        self.inputs: list[Value | None] = []
        for index, value in enumerate(node.inputs):
            declared = None if value is None else self.graph.add_input(f"in{index}", value.type)
            self.inputs.append(declared)

    def attr(self, name: str) -> Any:
        """An attribute of the node, or its default."""
        return attribute(self.node, name)

    def op(self, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """Apply an ONNX operator and return its first output."""
        return self.graph.add(op, inputs, attrs).output

    def reduce(self, op: str, x: Value, axes: Sequence[int], keep: bool = True) -> Value:
        """Apply a reduction; no axes mean all of them."""
        if not axes:
            return self.op(op, x, keepdims=int(keep))
        if self.opset >= (13 if op == "ReduceSum" else 18):
            return self.op(op, x, self.ints(*axes), keepdims=int(keep))
        return self.op(op, x, axes=tuple(axes), keepdims=int(keep))

    def ints(self, *numbers: int) -> Value:
        """An int64 vector."""
        return self.graph.add_const("ints", InlineTensor(np.array(numbers, np.int64)))

    def int(self, number: int) -> Value:
        """An int64 scalar."""
        return self.graph.add_const("int", InlineTensor(np.array(number, np.int64)))

    def like(self, number: float, value: Value) -> Value:
        """A scalar of the element type of a value with a recorded type."""
        return self.graph.add_const("number", InlineTensor(np.array(number, value.dtype.numpy), value.dtype))

    def rank(self, index: int) -> int:
        """Rank of an input; ValueError when it is unknown."""
        rank = _rank(self.node.input(index))
        if rank is None:
            raise ValueError(f"{self.node.op} cannot be defined before the rank of input {index} is known")
        return rank


def define(node: Node) -> Graph:
    """The meaning of a node of another domain as a graph of ONNX operators over its inputs.

    Depends on the operator, the attributes and the element types and ranks of the inputs alone.

    Raises:
        KeyError: the operator has no definition.
        ValueError: an input type that the definition needs is unknown, or the graph's opset is too old.
    """
    definition = opdef(node)
    if definition is None or definition.define is None:
        raise KeyError(node.op)
    body = Body(node)
    body.graph.set_outputs(definition.define(body))
    return body.graph


# ---- checks ----


def check_node(node: Node) -> list[Diagnostic]:
    """What is wrong with the operator name, arity and attributes of a node.

    Returns:
        T200 unknown operator, T201 arity, T202 unknown, T203 missing, T204 ill-typed attribute. An operator of a domain
        that neither ONNX nor a registered package owns is a warning.
    """
    from ir.infer.engine import describe

    definition = opdef(node)
    where = describe(node)
    if definition is None:
        key = f"{node.op}:{node.overload}" if node.overload else node.op
        body = root_of(node.graph).functions.get(key)  # type: ignore[arg-type]
        return [_unknown(node, where)] if body is None else _check_call(node, body, where)
    found: list[Diagnostic] = []
    counts = (
        ("inputs", len(node.inputs), definition.min_inputs, definition.max_inputs),
        ("outputs", len(node.outputs), definition.min_outputs, definition.max_outputs),
    )
    for what, count, low, high in counts:
        if not low <= count <= high:
            bounds = str(low) if low == high else f"{low} or more" if high == ANY else f"{low} to {high}"
            found.append(Diagnostic("T201", f"{node.op} takes {bounds} {what}, not {count}", where))
    for index, value in enumerate(node.inputs[: definition.min_inputs]):
        if value is None and not _may_be_left_out(node, definition, index):
            name = definition.inputs[min(index, len(definition.inputs) - 1)]
            found.append(Diagnostic("T201", f"input {name} of {node.op} cannot be left out", where))
    return found + _check_attributes(node, definition, where)


def _check_call(node: Node, body: Graph, where: str) -> list[Diagnostic]:
    """Arity of a call of a model-local function, which may leave trailing inputs and outputs out."""
    if len(node.inputs) <= len(body.inputs) and len(node.outputs) <= len(body.outputs):
        return []
    message = f"function {node.op} takes {len(body.inputs)} inputs and gives {len(body.outputs)} outputs"
    return [Diagnostic("T201", f"{message}, not {len(node.inputs)} and {len(node.outputs)}", where)]


def _may_be_left_out(node: Node, definition: OpDef, index: int) -> bool:
    """True for an input that ONNX lets a node leave out although later ones are given."""
    if definition.package != "onnx":
        return False
    from onnx import defs

    schema = schema_of(node.domain, node.op_type, opsets_of(node.graph).get(node.domain, OPSET))
    return schema.inputs[min(index, len(schema.inputs) - 1)].option == defs.OpSchema.FormalParameterOption.Optional


def _unknown(node: Node, where: str) -> Diagnostic:
    if not node.domain:
        from onnx import defs

        known = sorted({schema.name for schema in defs.get_all_schemas()})
        return Diagnostic("T200", f"ONNX has no operator {node.op}", where, suggest(node.op, known))
    if node.domain in {name.rpartition(".")[0] for name in load_own()}:
        hint = suggest(node.op, list(_OWN))
        return Diagnostic("T200", f"domain {node.domain} has no operator {node.op}", where, hint)
    return Diagnostic("T200", f"nobody registered operator {node.op}", where, severity="warning")


def _check_attributes(node: Node, definition: OpDef, where: str) -> list[Diagnostic]:
    found: list[Diagnostic] = []
    for name, value in node._attrs.items():
        described = definition.attrs.get(name)
        if described is None:
            hint = suggest(name, list(definition.attrs))
            found.append(Diagnostic("T202", f"{node.op} has no attribute {name!r}", where, hint))
        elif not _fits(value, described.kind):
            found.append(Diagnostic("T204", f"{name} of {node.op} must be {described.kind}, not {value!r}", where))
        elif described.choices and value not in described.choices:
            hint = suggest(str(value), sorted(described.choices))
            found.append(Diagnostic("T204", f"{name} of {node.op} cannot be {value!r}", where, hint))
    for name, described in definition.attrs.items():
        if described.required and name not in node._attrs:
            found.append(Diagnostic("T203", f"{node.op} needs attribute {name!r}", where))
    return found


_ITEMS = {
    "int": int, "float": int | float, "str": str | bytes, "tensor": Tensor, "graph": Graph, "type_proto": ValueType,
    "sparse_tensor": object,
}  # fmt: skip


def _fits(value: Any, kind: str) -> bool:
    if kind in _ITEMS:
        return isinstance(value, _ITEMS[kind]) and not (kind == "float" and isinstance(value, bool))
    return isinstance(value, tuple) and all(_fits(item, kind[:-1]) for item in value)


__all__ = [
    "ANY",
    "OLDEST",
    "AttrDef",
    "Body",
    "OpDef",
    "attribute",
    "check_node",
    "define",
    "is_rowwise",
    "lookup",
    "opdef",
    "register",
]
