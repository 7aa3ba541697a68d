"""Standard operators in the place of attention regions that were fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ir.base.types import BOOL, F32, Dim, TensorType
from ir.facts.raised import Region
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor
from passes.raising.attention import Attention, described
from passes.raising.fit import HeadNorm, Part
from passes.raising.tables import Builder


@dataclass
class Rebuild:
    """Rewrites regions of one graph, whose token ids are [1, seq] by now."""

    graph: Graph
    builder: Builder

    def __post_init__(self) -> None:
        self._masks: dict[int, Value] = {}
        self._numbers: dict[tuple[int, ...], Value] = {}

    @property
    def seq(self) -> int | Dim:
        """The axis of tokens."""
        return self.builder.ids.dims[-1]

    def attention(self, item: Attention) -> Region:
        """Replace one region."""
        form, region = item.form, item.region
        before = region.result.producer
        assert before is not None
        emit = _Emit(self, before, region.where)
        q, k, v = (emit.part(part, region.linears[part.linear].value) for part in (form.q, form.k, form.v))
        norms = [item.norms[index] for index in form.norms] if form.norms is not None else []
        if norms and form.norm_place == "before":
            q, k = emit.norm(q, form.q, norms[0]), emit.norm(k, form.k, norms[1])
        if item.table is not None and item.source is not None:
            cos, sin = self.builder.table(item.source, item.table)
            q, k = (
                emit.turn(value, part, cos, sin, form.interleaved, item.table.width)
                for value, part in ((q, form.q), (k, form.k))
            )
        if norms and form.norm_place == "after":
            q, k = emit.norm(q, form.q, norms[0]), emit.norm(k, form.k, norms[1])
        attrs: dict[str, object] = {"q_num_heads": form.q.heads, "kv_num_heads": form.k.heads, "is_causal": 1}
        inputs = [q, k, v]
        if form.window:
            attrs["is_causal"] = 0
            inputs.append(self._mask(form.window))
        if not math.isclose(form.scale, form.q.size**-0.5, rel_tol=1e-6):
            attrs["scale"] = form.scale
        if form.cap:
            attrs["softcap"] = form.cap
        width = form.q.heads * form.v.size
        mix = emit.add("Attention", inputs, "attention", (1, self.seq, width), attrs)
        if region.result.rank == 2:
            mix = emit.add("Reshape", [mix, self.ints(-1, width)], "attention.rows", (self.seq, width))
        self.graph.replace(region.result, mix)
        return _record(item)

    def ints(self, *numbers: int) -> Value:
        """A shared int64 vector."""
        if numbers not in self._numbers:
            name = self.graph.fresh_name("raised." + "_".join(str(number) for number in numbers))
            self._numbers[numbers] = self.graph.add_const(name, InlineTensor(np.array(numbers, np.int64)))
        return self._numbers[numbers]

    def _mask(self, window: int) -> Value:
        if window not in self._masks:
            positions = self.builder.positions()
            name = self.graph.fresh_name(f"mask.window_{window}")
            node = self.graph.add(
                "lading.SlidingWindowMask",
                [positions],
                {"window": window},
                outputs=(name,),
                types=(TensorType(BOOL, (1, 1, self.seq, self.seq)),),
                after=positions.producer,
                name=name,
            )
            self._masks[window] = node.output
        return self._masks[window]


@dataclass
class _Emit:
    """Adds the nodes of one region."""

    rebuild: Rebuild
    before: Node
    loc: str

    def add(
        self,
        op: str,
        inputs: list[Value],
        stem: str,
        shape: tuple[int | Dim, ...],
        attrs: Mapping[str, object] | None = None,
    ) -> Value:
        graph = self.rebuild.graph
        name = graph.fresh_name(f"{self.loc or self.before.name}.{stem}")
        types = (TensorType(F32, shape),)
        return graph.add(
            op, inputs, attrs, outputs=(name,), types=types, name=name, before=self.before, loc=self.loc
        ).output

    def part(self, part: Part, linear: Value) -> Value:
        """The columns of a product that a part is, float32[1, seq, heads * size]."""
        ints, seq = self.rebuild.ints, self.rebuild.seq
        size = part.heads * part.size
        whole = linear.dims[-1] if linear.shape is not None and linear.dims else None
        if linear.rank == 2:
            linear = self.add("Reshape", [linear, ints(1, -1, whole)], "rows", (1, seq, whole))  # type: ignore[arg-type]
        if whole == size and part.is_whole:
            return linear
        if part.is_whole:
            start = part.first[0]
            bounds = [ints(start), ints(start + size), ints(2)]
            return self.add("Slice", [linear, *bounds], "part", (1, seq, size))
        columns = (np.array(part.first)[:, None] + np.arange(part.size)).reshape(-1)
        return self.add("Gather", [linear, ints(*columns.tolist())], "part", (1, seq, size), {"axis": 2})

    def norm(self, value: Value, part: Part, norm: HeadNorm) -> Value:
        """The norm of each head, or of the row."""
        node, ints, seq = norm.node, self.rebuild.ints, self.rebuild.seq
        by_head = norm.gain.size == part.size
        width = part.heads * part.size
        if by_head:
            shape = (1, seq, part.heads, part.size)
            value = self.add("Reshape", [value, ints(0, 0, part.heads, part.size)], "heads", shape)
        attrs = {"axis": -1, "epsilon": norm.epsilon}
        rest = [item for item in node.inputs[1:] if item is not None]
        value = self.add(node.op, [value, *rest], "norm", value.dims, attrs)
        return self.add("Reshape", [value, ints(0, 0, -1)], "merged", (1, seq, width)) if by_head else value

    def turn(self, value: Value, part: Part, cos: Value, sin: Value, interleaved: bool, width: int) -> Value:
        """The rotary embedding."""
        attrs: dict[str, object] = {"num_heads": part.heads}
        if width != part.size:
            attrs["rotary_embedding_dim"] = width
        if interleaved:
            attrs["interleaved"] = 1
        return self.add("RotaryEmbedding", [value, cos, sin], "rope", value.dims, attrs)


def _record(item: Attention) -> Region:
    form, words = item.form, described(item.form)
    parameters: dict[str, object] = {
        "heads": form.q.heads,
        "kv_heads": form.k.heads,
        "head_size": form.q.size,
        "value_size": form.v.size,
        "scale": form.scale,
        "window": form.window,
        "softcap": form.cap,
        "norms": form.norm_place,
    }
    if item.table is not None and item.source is not None:
        style = "interleaved" if form.interleaved else "half"
        words += f", {style} rope of {item.table.width}"
        parameters |= {
            "rope": style,
            "rotary_size": item.table.width,
            "table": item.source.words,
            "factor": item.source.factor,
        }
    return Region(
        "attention", item.region.where, len(item.region.nodes), words, parameters, item.difference, item.probes
    )
