"""The steps by which a decoder that somebody else exported is brought into the standard form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, TensorType
from ir.facts.raised import Port, PortKind, Raised, Region
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_types
from ir.tensor.inline import InlineTensor
from passes.framework.context import PassContext
from passes.raising.activations import raise_activations
from passes.raising.attention import Findings, find_attention
from passes.raising.content import Content, chooses_rows, content_of, require_no_rows
from passes.raising.feeds import ROLES, is_unmade, require_free_length
from passes.raising.norms import raise_norms
from passes.raising.rebuild import Rebuild
from passes.raising.regions import ANCHORS, attention_regions
from passes.raising.tables import Builder, gather_rows


def raise_graph(graph: Graph, ctx: PassContext) -> Mapping[str, int]:
    """Bring a decoder into the standard form; how many regions of each kind were raised, nothing for no decoder.

    Raises:
        LadingError: P380 to P386.
    """
    content = content_of(graph)
    if content is None:
        if any(node.op in ANCHORS for node in graph.nodes):
            require_no_rows(graph)
        return {}
    require_free_length(content.ids)
    gather_rows(graph)
    _shape_unmade(graph, content)
    plain = []
    for raised in (raise_norms, raise_activations):
        plain += raised(graph, content)
        content = content_of(graph)
        assert content is not None
    found = find_attention(graph, content)
    if found is None:
        return {"plain": len(plain)}
    _warn_of_matrices(found, ctx)
    logits = _logits(graph, content)
    inputs, outputs = _inputs(graph, content, found), _outputs(graph, content, logits)
    regions = [*plain, *_rebuilt(graph, content, found)]
    graph.set_outputs([logits])
    _sweep(graph)
    _drop_inputs(graph, found)
    _retype(graph)
    _settle_shapes(graph)
    graph.set_fact(Raised.name, Raised(inputs, outputs, tuple(regions)))
    kinds = [region.kind for region in regions]
    return {f"{kind} regions": kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _rebuilt(graph: Graph, content: Content, found: Findings) -> list[Region]:
    ids = content.ids
    given = ids.dims[-1]
    seq = graph.add_dim(Dim("seq", 1, given.high if isinstance(given, Dim) else None))
    graph.set_type(ids, TensorType(ids.dtype, (1, seq)))
    rebuild = Rebuild(graph, Builder(graph, ids))
    for value in _row_positions(graph, content, found):
        rebuild.builder.recount(value)
    return [rebuild.attention(item) for item in found.attention]


def _row_positions(graph: Graph, content: Content, found: Findings) -> list[Value]:
    """Inputs that choose rows of a table that is not the embedding, as learned positions do."""
    return [
        value
        for value in graph.inputs
        if value is not content.ids and value not in found.roles.of and isinstance(value.type, TensorType)
        and value.dtype.is_integer and value.rank == 2 and not isinstance(value.dims[-1], int)
        and chooses_rows(value, content.fixed)
    ]  # fmt: skip


def _shape_unmade(graph: Graph, content: Content) -> None:
    """Give inputs that nothing declares and attention reads two axes, as masks and positions have.

    What reads them first often does with any shape, so that fewer axes were made out.
    """
    short = [
        value
        for value in graph.inputs
        if is_unmade(value) and isinstance(value.type, TensorType) and (value.rank or 0) < 2
    ]
    if short:
        read = {value for region in attention_regions(graph, content) for value in region.values}
        short = [value for value in short if value in read]
    for value in short:
        batch = content.ids.dims[0] if content.ids.rank == 2 else 1
        tokens = graph.add_dim(Dim(_fresh_dim(graph, f"{value.name}.tokens")))
        graph.set_type(value, TensorType(value.dtype, (batch, tokens)))
    if short:
        _retype(graph)
    else:
        _typed(graph)


def _fresh_dim(graph: Graph, stem: str) -> str:
    names = (stem if not number else f"{stem}.{number}" for number in count())
    return next(name for name in names if name not in graph.dims)


def _warn_of_matrices(found: Findings, ctx: PassContext) -> None:
    for value, role in found.roles.of.items():
        if role in ("causal", "allowed"):
            ctx.warn(
                "P388",
                f"the model takes its mask as the matrix {value.name!r}: it is taken to be causal, with no window",
                where=value.loc or value.name,
                hint="if the model was trained with a window, export it with the window in the graph",
            )


def _logits(graph: Graph, content: Content) -> Value:
    """The output with a number for each row of the embedding, else the widest one that a product of its own gives."""
    rows = content.look_up.operand(0).dims[0]
    found = [value for value in graph.outputs if value in content.values and (value.rank or 0) in (2, 3)]
    if not found:
        raise LadingError(
            "P385", "no output of this decoder has a row of logits for each token", where=f"graph {graph.name}"
        )
    same = [value for value in found if value.dims[-1] == rows]
    return same[0] if same else max(found, key=_width)


def _width(value: Value) -> int:
    last = value.dims[-1]
    return last if isinstance(last, int) else 0


def _inputs(graph: Graph, content: Content, found: Findings) -> tuple[Port, ...]:
    ports = []
    learned = _row_positions(graph, content, found)
    for value in graph.inputs:
        if value is content.ids:
            table = content.look_up.operand(0)
            ports.append(_port(value, "token-ids", f"they choose rows of @{table.name}"))
        elif value in content.history:
            ports.append(_port(value, "history", "attention fits with it as earlier keys or values"))
        elif value in found.roles.of:
            role = found.roles.of[value]
            kind, what = ROLES[role]
            ports.append(replace(_port(value, kind, f"every attention fits when it holds {what}"), role=role))
        elif value in learned:
            evidence = "it chooses rows of a table that are added to those of the tokens"
            ports.append(replace(_port(value, "positions", evidence), role="positions"))
        elif value.use_count:
            ports.append(_port(value, "row-choice", "content is chosen by it, and attention does not read it"))
        else:
            ports.append(_port(value, "unused", "nothing reads it"))
    return tuple(ports)


def _outputs(graph: Graph, content: Content, logits: Value) -> tuple[Port, ...]:
    ports = []
    for value in graph.outputs:
        if value is logits:
            ports.append(_port(value, "logits", "a number for each row of the embedding"))
        elif (value.rank or 0) >= 4:
            ports.append(_port(value, "new-history", "keys or values, which the runtime keeps itself"))
        else:
            ports.append(_port(value, "other", "not needed for the logits"))
    return tuple(ports)


def _port(value: Value, kind: PortKind, evidence: str) -> Port:
    if not isinstance(value.type, TensorType):
        return Port(value.name, kind, evidence, "")
    shape = tuple(dim if isinstance(dim, int) else dim.name for dim in value.shape or ())
    return Port(value.name, kind, evidence, str(value.dtype), shape)


def _sweep(graph: Graph) -> None:
    """Erase what nothing reads, readers before producers."""
    for node in reversed(graph.nodes):
        if node.outputs and not any(value.use_count for value in node.outputs):
            graph.erase(node)


def _drop_inputs(graph: Graph, found: Findings) -> None:
    for value in graph.inputs:
        if not value.use_count:
            graph.remove_input(value)
        elif value in found.roles.of:
            readers = ", ".join(repr(node) for node in value.users[:2])
            raise LadingError(
                "P386",
                f"the input {value.name!r} is read outside attention too, in a way that is not understood",
                where=readers,
            )


def _settle_shapes(graph: Graph) -> None:
    """Let reshapes infer the one size that is not a number, which they would take from the shape of the token ids."""
    made: dict[tuple[int, ...], Value] = {}
    for node in graph.nodes:
        shape = node.output.shape if node.op == "Reshape" else None
        if shape is None or node.operand(1).is_const or sum(isinstance(dim, Dim) for dim in shape) != 1:
            continue
        sizes = tuple(-1 if isinstance(dim, Dim) else dim for dim in shape)
        if 0 in sizes:
            continue
        if sizes not in made:
            name = graph.fresh_name("shape." + "_".join(str(size) for size in sizes))
            made[sizes] = graph.add_const(name, InlineTensor(np.array(sizes, np.int64)))
        graph.set_input(node, 1, made[sizes])
    _sweep(graph)


def _retype(graph: Graph) -> None:
    """Infer all types anew, now that the batch is 1."""
    for node in graph.nodes:
        for value in node.outputs:
            graph.set_type(value, None)
    _typed(graph)


def _typed(graph: Graph) -> None:
    problems = infer_types(graph)
    if problems:
        raise LadingError.of(problems)
