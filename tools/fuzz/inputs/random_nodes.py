"""Random nodes of every operator, with inputs left out, attributes of another kind, types that do not fit."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np

from ir.base.types import BOOL, DTYPES, F16, F32, F64, I32, I64, Dim, OptionalType, SequenceType, TensorType
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor
from tools.fuzz.inputs.mutate import BIG
from tools.fuzz.inputs.random_graphs import random_attribute

_INTS = (0, 1, -1, 2, 3, -3, 7, 11, *BIG)


def random_nodes(rng: random.Random) -> Graph:
    """A graph of one to four nodes of random operators over inputs and constants of many types."""
    graph = Graph("nodes")
    pool: list[Value | None] = [*_sources(graph, rng), None]
    for _ in range(rng.randint(1, 4)):
        pool.extend(_node(graph, pool, rng))
    made = [value for node in graph.nodes for value in node.outputs]
    graph.set_outputs(rng.sample(made, min(len(made), 2)) or list(graph.inputs[:1]))
    return graph


def _sources(graph: Graph, rng: random.Random) -> list[Value]:
    dim = graph.add_dim(Dim("n", 1, 8))
    types = [
        TensorType(F32, (2, 3)), TensorType(F32, (dim, 4)), TensorType(F32, (1, 2, 4, 4)), TensorType(F32, ()),
        TensorType(F32, None), TensorType(I64, (3,)),
        TensorType(I64, ()), TensorType(I32, (2, 3)), TensorType(BOOL, ()),
        TensorType(F16, (2, 3)), TensorType(F64, (dim,)), TensorType(DTYPES["str"], (2,)), TensorType(F32, (0, 3)),
        SequenceType(TensorType(F32, (2, 3))), OptionalType(TensorType(F32, (2, 3))), None,
    ]  # fmt: skip
    arrays = [
        np.ones((2, 3), np.float32), np.float32(0.5), np.array([0]), np.array([1, -1]), np.array([2, 3]), np.array(1),
        np.array(True), np.zeros((0,), np.int64),
        np.array([rng.choice(_INTS[:8] + BIG[:2])]), np.ones((3, 4), np.float32),
        np.zeros((2, 3), np.int8), np.uint8(3), np.ones((4, 2, 1, 1), np.float32),
    ]  # fmt: skip
    found = [graph.add_input(f"x{number}", type) for number, type in enumerate(rng.sample(types, 5))]
    found += [
        graph.add_const(f"c{number}", InlineTensor(np.asarray(array)))
        for number, array in enumerate(rng.sample(arrays, 5))
    ]
    return found


@cache
def _operators() -> tuple[str, ...]:
    from onnx import defs

    from ir.ops.registry import OPERATORS

    return tuple(sorted({item.name for item in defs.get_all_schemas() if not item.domain} | set(OPERATORS)))


def _node(graph: Graph, pool: list[Value | None], rng: random.Random) -> tuple[Value, ...]:
    from ir.ops.registry import lookup

    op = rng.choice(_operators())
    definition = lookup(op, graph.opsets)
    lowest, highest = (definition.min_inputs, definition.max_inputs) if definition is not None else (1, 2)
    least, most = (definition.min_outputs, definition.max_outputs) if definition is not None else (1, 1)
    slack = rng.random() < 0.15
    length = rng.randint(max(lowest - slack, 0), min(highest, lowest + 3) + slack)
    given = [value for value in pool if value is not None]
    inputs = [rng.choice(pool if slack or place >= lowest else given) for place in range(length)]
    count = rng.randint(max(least - slack, 0), min(most, least + 1) + slack)
    node = graph.add(op, inputs, outputs=("",) * count)
    if definition is not None:
        for name, attr in sorted(definition.attrs.items()):
            if rng.random() < (0.9 if attr.required else 0.3):
                graph.set_attrs(node, **{name: _attribute(attr.kind, attr.choices, rng, node)})
    return node.outputs


def _attribute(kind: str, choices: frozenset[str], rng: random.Random, node: Any) -> Any:
    if rng.random() < 0.1:
        return random_attribute(rng)
    if kind == "graph":
        return _body(rng, node)
    texts = [*sorted(choices), "", "NOTSET"]
    single = {
        "int": lambda: rng.choice(_INTS),
        "float": lambda: rng.choice([0.0, 1.0, -1.0, 1e-5, float("nan"), float("inf")]),
        "str": lambda: rng.choice(texts),
        "tensor": lambda: InlineTensor(np.asarray(rng.choice([np.float32(1), np.ones(3, np.int64), np.ones((2, 2))]))),
        "type_proto": lambda: TensorType(F32, (2,)),
    }
    if kind in single:
        return single[kind]()
    if kind.endswith("s") and kind[:-1] in single:
        return tuple(single[kind[:-1]]() for _ in range(rng.randint(0, 4)))
    return random_attribute(rng)


def _body(rng: random.Random, node: Any) -> Graph:
    body = Graph("body", owner=node)
    values: list[Value] = [body.add_input(body.fresh_name("in"), None) for _ in range(rng.randint(0, 3))]
    values.append(body.add_const("k", InlineTensor(np.asarray(rng.choice([np.array(True), np.float32(1)])))))
    values += [value for value in node.inputs if value is not None]
    for _ in range(rng.randint(0, 2)):
        values.append(body.add(rng.choice(["Identity", "Neg", "Not"]), [rng.choice(values)]).output)
    inner = [value for value in values if value.graph is body]
    body.set_outputs([rng.choice(inner) for _ in range(rng.randint(0, 3))])
    return body


__all__ = ["random_nodes"]
