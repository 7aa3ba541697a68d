"""Turn features by orthogonal matrices where both sides are folded into weights, so that no feature stands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ir.base.diag import LadingError
from ir.facts.inputs import DynamicInputs
from ir.graph.describe import describe
from ir.graph.graph import Graph, Node, Value
from ir.tensor.inline import InlineTensor
from ir.tensor.rotated import rotated
from passes.calibration.foldable_places import (
    Linear,
    NormGroup,
    change_const,
    is_last_axis_norm,
    is_tied,
    linear_of,
    norm_group,
    scale_inputs,
    set_gain,
    turn_inputs,
    turn_outputs,
    value_pair,
)
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option

SAME_FEATURES = ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that keep the features of each position as they are when the last axis keeps its size."""


@dataclass(frozen=True)
class Rotate(Pass):
    """Turn the features between layers by orthogonal matrices that are folded into the weights on both sides.

    ``values``: each head of attention values is turned by a random Hadamard matrix, and the output projection turns it
    back; exact for any attention, since mixing positions is linear in the values. ``residual``: the whole residual
    stream is turned; embedding rows and whatever writes to the stream are turned, norm gains go into the layers behind
    them (an RMS norm without gain does not see a rotation), and those are turned back (SliceGPT, Ashkboos et al., 2024;
    QuaRot).

    The logits matrix takes up the last gain, so a checkpoint that ties it to the embedding would have to store both.
    With ``residual=untied`` such a model keeps its stream and a warning says so.
    """

    name = "rotate"
    requires = ("typed",)
    breaks = ("calibration",)

    values: bool = option(True, help="turn the attention values")
    residual: Literal["never", "untied", "always"] = option(
        "never", help="turn the residual stream: never, unless embedding and logits matrix are tied, or always"
    )
    seed: int = option(0, help="other seeds give other rotations", low=0)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """Fold the rotations; counts tell how many attentions were turned or left, and whether the stream was."""
        counts = {"values": 0, "left": 0, "residual": 0}
        if self.residual != "never":
            counts["residual"] = int(self._turn_residual(graph, ctx))
        if self.values:
            self._turn_values(graph, counts)
        if counts["values"] or counts["residual"]:
            graph.set_fact("calibration", None)
        return counts

    def _turn_values(self, graph: Graph, counts: dict[str, int]) -> None:
        attentions = [node for node in graph.nodes if node.op == "Attention"]
        for index, node in enumerate(attentions):
            pair = value_pair(node)
            if pair is None:
                counts["left"] += 1
                continue
            seed = self.seed + 1 + index
            turn_outputs(graph, pair.value, pair.head_dim, seed)
            for linear in pair.readers:
                turn_inputs(graph, linear, pair.head_dim, seed)
            counts["values"] += 1

    def _turn_residual(self, graph: Graph, ctx: PassContext) -> bool:
        stream = _Stream(graph)
        tied = [linear for group in stream.norms for linear in group.readers if is_tied(graph, linear)]
        if tied and self.residual == "untied":
            ctx.warn(
                "Q463",
                "the logits matrix is the embedding, so the residual stream is not turned",
                where=tied[0].weight.name,
                hint="use residual=always to turn it and store both matrices",
            )
            return False
        stream.turn(self.seed)
        return True


@dataclass
class _Stream:
    """The residual stream of a graph: everything that is added to the embedding rows before a norm reads it.

    Attributes:
        values: the values of the stream.
        norms: norms that read it, with the layers behind each.
        writers: layers whose output is added.
        gathers: look-ups of rows of a constant table; the runtime's own table is turned besides.
        width: features.
    """

    graph: Graph
    values: dict[Value, None] = field(default_factory=dict)
    norms: list[NormGroup] = field(default_factory=list)
    writers: list[Linear] = field(default_factory=list)
    gathers: list[Node] = field(default_factory=list)
    table: Value | None = None
    width: int = 0

    def __post_init__(self) -> None:
        """Find the stream; Q461 and Q462 when it cannot be turned."""
        starts = [node for node in self.graph.nodes if is_last_axis_norm(node)]
        if not starts:
            other = next((node for node in self.graph.nodes if node.op == "LayerNormalization"), None)
            raise _refuse_norm(other) if other is not None else _refuse("the graph has no RMS norm", None)
        self.width = starts[0].operand(1).sizes[0]
        waiting: list[Value] = [starts[0].operand(0)]
        while waiting:
            value = waiting.pop()
            if value not in self.values:
                self.values[value] = None
                waiting += self._made_from(value)
                waiting += self._goes_to(value)

    def _made_from(self, value: Value) -> list[Value]:
        """The values of the stream that a value of the stream is computed from."""
        node = value.producer
        if node is None:
            return self._fed(value)
        writer = self._writer(node)
        if writer is not None:
            if writer.output is value:
                self.writers.append(writer)
                return []
            raise _refuse("a layer writes to the stream and is read without its bias", node)
        if node.op == "Gather" and node.inputs[0] is not None and node.inputs[0].const is not None:
            self.gathers.append(node)
            return []
        return self._same_features(node, back=True)

    def _writer(self, node: Node) -> Linear | None:
        if node.op == "Add":
            made = [linear_of(item.producer) for item in node.inputs if item is not None and item.producer is not None]
            return next((item for item in made if item is not None and item.output is node.output), None)
        return linear_of(node)

    def _fed(self, value: Value) -> list[Value]:
        """Nothing comes before rows that the runtime looks up in the embedding table; no other input may be turned."""
        inputs = self.graph.fact(DynamicInputs)
        rows = inputs.find("embedding-rows") if inputs is not None else None
        table = self.graph.tables.get("embedding")
        if rows is None or rows.input != value.name or table is None or table.const is None:
            raise _refuse(f"%{value.name} comes from outside", None)
        self.table = table
        return []

    def _goes_to(self, value: Value) -> list[Value]:
        """The values of the stream that are computed from a value of the stream."""
        if value.is_output:
            raise _refuse(f"the graph returns %{value.name}", value.producer)
        found: list[Value] = []
        for node, index in value.uses:
            if is_last_axis_norm(node) and index == 0:
                self._norm(node)
            else:
                found += self._same_features(node, back=False)
        return found

    def _norm(self, node: Node) -> None:
        group = norm_group(node)
        if group is None:
            raise _refuse("a norm of the stream is read by something other than linear layers", node)
        self.norms.append(group)

    def _same_features(self, node: Node, *, back: bool) -> list[Value]:
        """Inputs or outputs of a node that belong to the stream when the others do; Q462 for a node that mixes
        features."""
        if node.op == "LayerNormalization":
            raise _refuse_norm(node)
        data = [value for value in node.inputs if value is not None and value.const is None]
        joined = data if node.op == "Add" and len(data) == 2 else data[:1]
        wide = all(value.shape and value.shape[-1] == self.width for value in (*joined, node.output))
        if not wide or not joined or not self._is_featurewise(node, data):
            raise _refuse(f"{node.op} does not leave the features of the stream alone", node)
        return joined if back else [node.output]

    def _is_featurewise(self, node: Node, data: list[Value]) -> bool:
        if node.op == "Add":
            return len(data) == 2
        if node.op in ("Mul", "Div"):
            others = [value for value in node.inputs if value is not None and value.const is not None]
            return (
                len(others) == 1
                and others[0].tensor.type.size == 1
                and (node.op == "Mul" or others[0] is node.inputs[1])
            )
        if node.op == "Slice":
            given = node.input(3)
            axes = given.const if given is not None else None
            last = (data[0].rank or 0) - 1
            return axes is not None and not {-1, last} & set(axes.load().tolist())
        return node.op in SAME_FEATURES

    def turn(self, seed: int) -> None:
        """Fold gains into the layers behind the norms and the rotation into everything at the border of the stream."""
        for group in self.norms:
            for linear in group.readers:
                scale_inputs(self.graph, linear, group.gain.tensor)
                turn_inputs(self.graph, linear, self.width, seed)
        for group in self.norms:
            set_gain(self.graph, group.norm, InlineTensor(np.ones(self.width, np.float32), group.gain.dtype))
        for writer in self.writers:
            turn_outputs(self.graph, writer, self.width, seed)
        for gather in self.gathers:
            table = gather.operand(0).tensor
            change_const(self.graph, gather, 0, rotated(table, 1, self.width, seed))
        if self.table is not None:
            self._turn_table(self.table, seed)

    def _turn_table(self, table: Value, seed: int) -> None:
        turned = rotated(table.tensor, 1, self.width, seed)
        if table.use_count == 1:
            self.graph.set_const(table, turned)
        else:
            self.graph.set_table("embedding", self.graph.add_const(f"{table.name}.turned", turned, loc=table.loc))


def _refuse(why: str, node: Node | None) -> LadingError:
    hint = "use residual=never, which turns the attention values alone"
    return LadingError("Q462", f"the residual stream cannot be turned: {why}", describe(node) if node else "", hint)


def _refuse_norm(node: Node) -> LadingError:
    hint = "use residual=never, which turns the attention values alone"
    return LadingError("Q461", "a norm that subtracts the mean sees a rotation", describe(node), hint)
