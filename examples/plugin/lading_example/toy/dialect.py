"""The operators of the toy runtime, and what a graph for it may hold."""

from __future__ import annotations

from ir.base.diag import Diagnostic
from ir.base.types import TensorType, ValueType
from ir.graph.graph import Graph, Node, Value
from ir.infer.inference import Inference
from ir.infer.numeric import tensor
from ir.ops.meaning import Body
from ir.ops.registry import AttrDef, OpDef
from ir.verify.stages import Allow, Forbid, Stage, on_constants, stage_rules

ACTIVATIONS = ("none", "relu", "squared-relu")


def _type(run: Inference, node: Node) -> ValueType | None:
    x, weight = (tensor(value) for value in node.inputs)
    if x is None or weight is None or x.shape is None or weight.shape is None:
        return None
    return TensorType(x.dtype, (*x.shape[:-1], weight.shape[-1]))


def _meaning(body: Body) -> list[Value]:
    found = body.op("MatMul", *body.inputs)
    if body.attr("activation") != "none":
        found = body.op("Relu", found)
    return [body.op("Mul", found, found) if body.attr("activation") == "squared-relu" else found]


DENSE = OpDef(
    "toy.Dense",
    inputs=("x", "weight"),
    min_inputs=2,
    max_inputs=2,
    attrs={"activation": AttrDef("activation", "str", "none", choices=frozenset(ACTIVATIONS))},
    infer=_type,
    define=_meaning,
    weight_input=1,
    package="lading_example",
    doc="activation(x @ weight).",
)
DEFINITIONS = (DENSE,)

STAGE = Stage(
    ("typed", "toy"),
    (
        Allow("toy.*"),
        Allow("DequantizeLinear", on_constants),
        Forbid("*", hint="lower-to-toy makes operators of the toy runtime"),
    ),
)


def problems(graph: Graph) -> list[Diagnostic]:
    """What the toy runtime cannot run: the invariant ``toy``."""
    return stage_rules(graph, "toy")
