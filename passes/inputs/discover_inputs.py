"""Reconcile a graph with the calling convention of a runtime: find what the graph computes or freezes but the runtime
feeds, and declare it as an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import Dim, Shape, TensorType
from ir.facts.free_tensors import FreeTensors
from ir.facts.inputs import Discovery, DynamicInputs
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.target.signature import FedInput, Signature, signature
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.inputs import chosen_rows, embedding_rows, masks, positions, row_choice, token_ids, whole_sequence
from passes.inputs.finding import Finding, Masked
from passes.inputs.shape_only import shape_only_values

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class DiscoverInputs(Pass):
    """Declare the inputs that the runtime feeds and the graph computes, freezes or lacks.

    Works on a graph that takes token ids and returns logits, of the whole sequence or of rows that it chooses by what
    nothing makes, by an input, or by a constant that tracing froze: such a choice gives way to the runtime's. Of a graph
    that is no language model, the tensors that nothing made are recorded as inputs. Found by what values are, not by what
    they are called: positions are the value that depends on shapes alone and equals 0..seq-1, masks are the
    windows that attention reads, the row slice goes to the last value through which every path from the sequence to the
    logits leads and behind which each position is computed on its own.
    """

    name = "discover-inputs"
    requires = ("typed",)
    establishes = ("signature",)

    signature: str = option("", help="calling convention to reconcile the graph with; by default the target's")
    place: Literal["norm", "earliest"] = option(
        "norm",
        help="where the wanted rows are cut out: before the final norm, or as early as positions are independent",
    )

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        if _is_general(graph):
            return self._general(graph)
        convention = signature(self.signature or ctx.target.signature)
        found: list[Discovery] = []
        ids = token_ids.find(graph).value
        chosen = _own_choices(graph, ids)
        _require_no_others(graph, convention, ids)
        _free_names(graph, convention, ids)
        windows = _Masks(graph, convention, ids).run(found)
        _positions(graph, convention, ids, found)
        _rows(graph, convention, ids, found)
        _last_rows(graph, convention, self.place, chosen, found)
        _declare_order(graph, convention)
        graph.set_fact(
            DynamicInputs.name, DynamicInputs(convention.name, tuple(found), convention.keeps_cache, windows)
        )
        return {"inputs": len(found)}

    def _general(self, graph: Graph) -> Mapping[str, int]:
        """Record what the inputs of a graph are that no convention speaks of; they stay as they are."""
        free = graph.required_fact(FreeTensors)
        found = tuple(_own(value, free) for value in graph.inputs)
        graph.set_fact(DynamicInputs.name, DynamicInputs("", found, keeps_cache=False))
        return {"inputs": sum(item.kind == "free" for item in found)}

    def adapter(self, graph: Graph) -> DynamicInputs | None:
        """The recorded fact knows how token ids become what the runtime feeds."""
        fact = graph.required_fact(DynamicInputs)
        return fact if fact.signature else None


def _is_general(graph: Graph) -> bool:
    """True for a graph that reads tensors which nothing makes, and in which nothing chooses rows of a table of weights."""
    free = graph.fact(FreeTensors)
    ids = any(value.dtype.is_integer and token_ids.look_ups(value)
              for value in graph.inputs if isinstance(value.type, TensorType))  # fmt: skip
    return free is not None and bool(free.tensors) and not ids


def _own(value: Value, free: FreeTensors) -> Discovery:
    """What is known of an input of the graph's own."""
    shapes = (
        (tuple(dim if isinstance(dim, int) else dim.name for dim in value.shape),) if value.shape is not None else ()
    )
    found = free.find(value.name)
    if found is None:
        return Discovery(value.name, "given", "declared", "the model declares it", value.name, shapes=shapes)
    return Discovery(
        value.name, "free", "dangling", found.reason, found.readers[0] if found.readers else "", found.default, shapes,
        found.low, found.high, found.reason,
    )  # fmt: skip


def _free_names(graph: Graph, convention: Signature, ids: Value) -> None:
    """Keep the names of what the runtime feeds for its inputs; what else is so called is called otherwise."""
    for fed in convention.inputs:
        for level in graph.graphs():
            value = level._names.get(fed.name)
            if value is not None and not (value is ids and fed.kind == "embedding-rows"):
                level.rename(value, graph.fresh_name(f"{fed.name}.given"))


def _own_choices(graph: Graph, ids: Value) -> chosen_rows.ChosenRows | None:
    """Undo every choice of rows that the graph makes itself; returns the first that was found."""
    first: chosen_rows.ChosenRows | None = None
    while len(graph.outputs) == 1:
        chosen = chosen_rows.find(graph, ids, graph.outputs[0], after=first is not None)
        if chosen is None:
            break
        first = first or chosen
        whole_sequence.undo(graph, chosen)
        for value in chosen.indices:
            if not value.use_count:
                graph.remove_input(value)
    _require_every_row(graph, ids)
    return first


def _require_every_row(graph: Graph, ids: Value) -> None:
    """Refuse logits of other rows than those of the tokens: a choice that is left would be made twice.

    Raises:
        LadingError: P333.
    """
    for logits in graph.outputs:
        shape = logits.shape
        if shape is not None and len(shape) > 1 and shape[-2] != _seq(ids):
            raise LadingError(
                "P333",
                f"the graph returns {shape[-2]} rows of logits for {_seq(ids)} tokens, chosen in a way that is not the "
                "runtime's",
                _where_rows_change(logits, _seq(ids)),
                "export the model so that it returns the logits of every position",
            )


def _where_rows_change(logits: Value, seq: int | Dim) -> str:
    """The node, on the way to the logits, that makes other rows of those of the sequence."""
    value, node = logits, logits.producer
    while node is not None:
        before = [item for item in node.inputs if item is not None and isinstance(item.type, TensorType)]
        if any(item.shape is not None and len(item.shape) > 1 and item.shape[-2] == seq for item in before):
            return describe(node)
        following = [item for item in before if item.producer is not None]
        if not following:
            return describe(node)
        value = following[0]
        node = value.producer
    return repr(value)


def _positions(graph: Graph, convention: Signature, ids: Value, found: list[Discovery]) -> None:
    """Replace the computed 0..seq-1 by the fed positions, which also count the history."""
    fed = convention.fed("positions")
    finding = positions.find(graph, ids)
    if fed is None or finding is None:
        return
    computed = finding.value
    value = graph.add_input(graph.fresh_name(fed.name), TensorType(fed.dtype, (1, _seq(ids))), loc=computed.loc)
    first = graph.first
    shape = graph.add_const("positions.shape", InlineTensor(np.array(_like(computed), dtype=np.int64)))
    flat = graph.add(
        "Reshape", [value, shape], types=[TensorType(fed.dtype, computed.shape)], before=first, loc=computed.loc
    )
    widened = graph.add(
        "Cast",
        [flat.output],
        {"to": computed.dtype.onnx},
        types=[TensorType(computed.dtype, computed.shape)],
        after=flat,
        loc=computed.loc,
    )
    graph.replace(computed, widened.output)
    found.append(_record(fed, value, finding))


def _rows(graph: Graph, convention: Signature, ids: Value, found: list[Discovery]) -> None:
    """Replace the embedding look-up by the fed rows and hand the table to the runtime."""
    fed = convention.fed("embedding-rows")
    if fed is None:
        return
    finding = embedding_rows.find(graph, ids)
    gather = finding.node
    table = gather.operand(0)
    hidden = table.sizes[1]
    seq = _seq(ids)
    value = graph.add_input(graph.fresh_name(fed.name + ".rows"), TensorType(fed.dtype, (seq, 1, hidden)))
    shape = graph.add_const("rows.shape", InlineTensor(np.array([1, -1, hidden], dtype=np.int64)))
    rows = graph.add(
        "Reshape",
        [value, shape],
        types=[TensorType(fed.dtype, (1, seq, hidden))],
        outputs=[gather.output.name + ".rows"],
        before=gather,
        loc=gather.loc,
    )
    graph.replace(gather.output, rows.output)
    graph.erase(gather)
    graph.set_table(convention.embedding, table)
    _sweep_shape_users(graph, ids)
    graph.remove_input(ids)
    graph.rename(value, fed.name)
    found.append(_record(fed, value, finding, (ids.name,)))


def _last_rows(
    graph: Graph, convention: Signature, place: str, chosen: chosen_rows.ChosenRows | None, found: list[Discovery]
) -> None:
    """Cut the wanted rows out before the final norm, so that one row and not the sequence meets the logits matrix."""
    read = convention.outputs[0]
    logits = graph.outputs[0]
    if logits.name != read.name:
        if graph.has(read.name):
            raise LadingError("P353", f"a value that is not the output is already called {read.name!r}", logits.name)
        graph.rename(logits, read.name)
    fed = convention.fed("output-rows")
    if fed is None:
        return
    finding = row_choice.find(graph, logits, place)
    cut = finding.value
    value = graph.add_input(graph.fresh_name(fed.name), TensorType(fed.dtype, _declared(graph, fed)))
    rows = graph.add_dim(Dim("rows", 1, _high(cut.dims[-2])))
    ends = graph.add_const("rows.end", InlineTensor(np.array([_INT32_MAX], dtype=np.int32)))
    axes = graph.add_const("rows.axis", InlineTensor(np.array([len(cut.dims) - 2], dtype=np.int32)))
    steps = graph.add_const("rows.step", InlineTensor(np.array([1], dtype=np.int32)))
    readers = cut.uses
    sliced = graph.add(
        "Slice",
        [cut, value, ends, axes, steps],
        outputs=[cut.name + ".rows"],
        types=[TensorType(cut.dtype, (*cut.dims[:-2], rows, cut.dims[-1]))],
        after=cut.producer,
        loc=cut.loc,
    )
    for node, index in readers:
        graph.set_input(node, index, sliced.output)
    _retype_rows(graph, sliced, cut.dims[-2], rows)
    given = tuple(item.name for item in chosen.indices) if chosen is not None else ()
    found.append(_record(fed, value, chosen or finding, given))


def _retype_rows(graph: Graph, start: Node, old: int | Dim, new: Dim) -> None:
    """Everything behind the cut has as many rows as the slice keeps."""
    behind = {start.output}
    node = start._next
    while node is not None:
        if any(value in behind for value in node.inputs):
            for value in node.outputs:
                behind.add(value)
                if isinstance(value.type, TensorType) and value.shape is not None:
                    shape = tuple(new if dim == old else dim for dim in value.shape)
                    graph.set_type(value, TensorType(value.dtype, shape))
        node = node._next


@dataclass
class _Masks:
    """Attention masks: causal attention becomes the runtime's business, windows read their plane of the fed mask."""

    graph: Graph
    convention: Signature
    ids: Value

    def run(self, found: list[Discovery]) -> tuple[int, ...]:
        fed = self.convention.fed("attention-mask")
        masked = masks.find(self.graph)
        windows = tuple(sorted({item.window for item in masked}))
        if fed is None:
            return windows
        if len({w for w in windows if w}) > 1:
            raise LadingError(
                "P354",
                f"the graph has attention windows {[w for w in windows if w]}, and the runtime feeds one mask for windows",
                where=masked[0].where,
            )
        # A mask without axes says nothing where sinks take part in the scores, so it is spelled out.
        spelled = any(item.node.op == "lading.SinkAttention" for item in masked)
        if not any(windows) and not spelled:
            value = self.graph.add_input(self.graph.fresh_name(fed.name), TensorType(fed.dtype, ()))
            found.append(self._record(fed, value, (fed.shapes[0], fed.shapes[1]), "the runtime masks future tokens"))
            return (0,)
        value = self._planes(fed, masked)
        found.append(self._record(fed, value, (fed.shapes[2],), _why_planes(windows)))
        return windows

    def _planes(self, fed: FedInput, masked: Sequence[Masked]) -> Value:
        graph, seq = self.graph, _seq(self.ids)
        kv = graph.add_dim(Dim("kv", 1, _high(seq)))
        value = graph.add_input(graph.fresh_name(fed.name), TensorType(fed.dtype, (2, 1, 1, seq, kv)))
        first = graph.first
        sizes = graph.add_const("mask.planes", InlineTensor(np.array([1, 1], dtype=np.int64)))
        plane_type = TensorType(fed.dtype, (1, 1, 1, seq, kv))
        split = graph.add(
            "Split",
            [value, sizes],
            {"axis": 0},
            outputs=["mask.full", "mask.window"],
            types=[plane_type] * 2,
            before=first,
        )
        axis = graph.add_const("mask.axis", InlineTensor(np.array([0], dtype=np.int64)))
        planes, last = [], split
        for plane in split.outputs:
            last = graph.add(
                "Squeeze",
                [plane, axis],
                outputs=[plane.name + "4d"],
                types=[TensorType(fed.dtype, (1, 1, seq, kv))],
                after=last,
            )
            planes.append(last.output)
        for item in masked:
            node = item.node
            place = masks.MASKS[node.op]
            inputs = [*node.inputs[:place], planes[1 if item.window else 0], *node.inputs[place + 1 :]]
            graph.set_inputs(node, inputs)
            graph.set_attrs(node, is_causal=0)
        return value

    def _record(self, fed: FedInput, value: Value, shapes: tuple, reason: str) -> Discovery:
        return Discovery(
            value.name, fed.kind, "kv-cache", reason, "", fed.default, shapes, fed.low, fed.high, fed.meaning
        )


def _why_planes(windows: tuple[int, ...]) -> str:
    if any(windows):
        return f"attention windows {windows} come as planes of a mask"
    return "attention with sinks reads the plane of a mask that hides the future"


def _record(fed: FedInput, value: Value, finding: Finding, given: tuple[str, ...] = ()) -> Discovery:
    return Discovery(
        value.name, fed.kind, finding.why, finding.reason, finding.where, fed.default, fed.shapes, fed.low, fed.high,
        fed.meaning, given,
    )  # fmt: skip


def _declare_order(graph: Graph, convention: Signature) -> None:
    order = {item.name: place for place, item in enumerate(convention.inputs)}
    graph.order_inputs(sorted(graph.inputs, key=lambda value: order[value.name]))


def _require_no_others(graph: Graph, convention: Signature, ids: Value) -> None:
    """Drop inputs that nothing reads, and refuse those that are left beside the token ids.

    Raises:
        LadingError: P355.
    """
    for value in graph.inputs:
        if not value.use_count:
            graph.remove_input(value)
    extra = [value for value in graph.inputs if value is not ids]
    if not extra:
        return
    fed = {item.name: item for item in convention.inputs}
    same = [value.name for value in extra if value.name in fed]
    message = (
        f"the graph computes with {', '.join(value.name for value in extra)}, which {convention.name} does not feed"
    )
    if same:
        what = "; ".join(f"{name} is fed for one purpose only: {fed[name].meaning}" for name in same)
        message = f"the graph computes with {', '.join(value.name for value in extra)} in a way that is not the runtime's: {what}"
    raise LadingError(
        "P355",
        message,
        where="\n".join(f"{value!r}, read by {', '.join(map(_short, value.users[:3]))}" for value in extra[:4]),
        hint=f"{convention.name} feeds {', '.join(fed)}; make constants of all other inputs",
    )


def _short(node: Node) -> str:
    return f"{node.op} {(node.name or node.loc or node.output.name)!r}"


def _sweep_shape_users(graph: Graph, ids: Value) -> None:
    """Drop what only computed positions and masks from the shape of the ids."""
    for node in reversed(shape_only_values(graph, ids).nodes):
        if all(value.use_count == 0 for value in node.outputs):
            graph.erase(node)
    if ids.use_count:
        readers = ", ".join(repr(node) for node in ids.users)
        raise LadingError(
            "P356",
            f"the graph still reads the token ids after the embedding look-up was taken out: {readers}",
            where=ids.name,
            hint="the runtime feeds embedding rows, not ids",
        )


def _seq(ids: Value) -> int | Dim:
    return ids.dims[-1]


def _declared(graph: Graph, fed: FedInput) -> Shape:
    """The shape that an input is declared with."""
    return tuple(
        graph.dims.get(size) or graph.add_dim(Dim(size)) if isinstance(size, str) else size for size in fed.shapes[0]
    )


def _high(dim: int | Dim) -> int | None:
    return dim.high if isinstance(dim, Dim) else dim


def _like(value: Value) -> list[int]:
    return [-1 if isinstance(dim, Dim) else dim for dim in value.dims]
