"""Fit a graph that is lifted to a calling convention: inputs that are fed, rows that are wanted, the output's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.read.net_file import numbers
from ir.base.diag import LadingError
from ir.base.types import F32, I32, Dim, TensorType
from ir.facts.inputs import Discovery, DynamicInputs
from ir.graph.graph import Value
from ir.target.signature import FedInput, signature


def declare_inputs(builder: Builder, net: Mapping[str, Any]) -> dict[int, Value]:
    """Add the inputs of a file to the graph, and those that the convention feeds besides; by number of the tensor.

    Raises:
        LadingError: F646 the width of embedding rows is not declared.
    """
    names, graph = net["tensorName"], builder.graph
    declared = {
        names[index]: (index, op.get("main", {}))
        for op in net["oplists"]
        if op.get("type") == "Input"
        for index in numbers(op.get("outputIndexes"))
    }
    known = {item.name: item for item in signature("mnn-llm").inputs}
    wanted = {item.name for item in builder.convention.inputs}
    found: dict[int, Value] = {}
    for name, (index, main) in declared.items():
        if name not in known:
            continue
        fed = known[name]
        value = graph.add_input(name, _input_type(builder, fed, numbers(main.get("dims"))), loc=name)
        found[index] = value
        if fed.kind == "output-rows":
            builder.index = value
    for name in wanted - set(declared):
        if known[name].kind == "attention-mask":
            graph.add_input(name, TensorType(F32, ()), loc=name)
    return found


def _input_type(builder: Builder, fed: FedInput, dims: list[int]) -> TensorType:
    if fed.kind == "embedding-rows":
        if not dims or dims[-1] < 1:
            raise LadingError("F646", f"the width of embedding rows is not declared: {dims}", where=fed.name)
        return TensorType(F32, (builder.seq, 1, dims[-1]))
    if fed.kind == "positions":
        return TensorType(I32, (1, builder.seq))
    if fed.kind == "output-rows":
        return TensorType(I32, (1,))
    if len(dims) == 5:
        kv = builder.graph.add_dim(Dim("kv", 1, None))
        return TensorType(F32, (2, 1, 1, builder.seq, kv))
    return TensorType(F32, ())


def cut_rows(builder: Builder, logits: Value) -> Value:
    """Return the rows that logits_index asks for, in a model that returns all for want of it."""
    fed = builder.convention.fed("output-rows")
    assert fed is not None
    builder.index = builder.graph.add_input(fed.name, TensorType(I32, (1,)), loc=fed.name)
    cut = _last_of_sequence(builder, logits)
    readers = cut.uses
    rows = builder.slice_rows(cut, len(cut.dims) - 2)
    for node, place in readers:
        builder.graph.set_input(node, place, rows)
    assert rows.producer is not None
    # The cut was made last; it belongs where its operand is.
    builder.graph.move(rows.producer, after=cut.producer)
    _retype(builder, rows)
    return rows if cut is logits else logits


def _last_of_sequence(builder: Builder, logits: Value) -> Value:
    """The value ``[1, seq, hidden]`` nearest to the logits from which each position is computed on its own."""
    value, found = logits, logits
    alone = ("mnn.Reshape", "mnn.ConvertTensor", "mnn.Convolution", "mnn.LayerNorm", "mnn.Unary")
    while value.producer is not None and value.producer.op in alone:
        value = value.producer.operand(0)
        if value.dims[:2] == (1, builder.seq) and len(value.dims) == 3:
            found = value
    return found


def _retype(builder: Builder, rows: Value) -> None:
    """Give everything behind the cut as many rows as it keeps."""
    behind = {rows}
    for node in builder.graph.nodes:
        if node is not rows.producer and any(value in behind for value in node.inputs):
            for value in node.outputs:
                behind.add(value)
                shape = tuple(builder.rows if dim == builder.seq else dim for dim in value.dims)
                builder.graph.set_type(value, TensorType(value.dtype, shape))


def finish(builder: Builder, logits: Value) -> None:
    """Name the output, drop what nothing reads, order the inputs and record what is fed."""
    graph = builder.graph
    if graph.has("logits") and logits.name != "logits":
        graph.rename(graph.value("logits"), graph.fresh_name("logits.old"))
    graph.set_outputs([logits])
    graph.rename(logits, builder.convention.outputs[0].name)
    for node in reversed(graph.nodes):
        if not any(value.use_count for value in node.outputs):
            graph.erase(node)
    for value in list(graph.consts.values()):
        if value.use_count == 0:
            graph.erase_const(value)
    wanted = {item.name: item for item in builder.convention.inputs}
    for value in graph.inputs:
        if value.name not in wanted and value.use_count == 0:
            graph.remove_input(value)
    order = {name: place for place, name in enumerate(wanted)}
    graph.order_inputs(sorted(graph.inputs, key=lambda value: order.get(value.name, 99)))
    discoveries = tuple(_discovery(value, wanted[value.name]) for value in graph.inputs if value.name in wanted)
    graph.set_fact(DynamicInputs.name, DynamicInputs(builder.convention.name, discoveries, True, (0,)))


def _discovery(value: Value, fed: FedInput) -> Discovery:
    return Discovery(
        value.name, fed.kind, "runtime-feeds", "the model declares the input or the runtime feeds it", "", fed.default,
        fed.shapes, fed.low, fed.high, fed.meaning,
    )  # fmt: skip
