"""Make static quantization real: QuantizeLinear and DequantizeLinear pairs with constant scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import I8, I32, DType, TensorType
from ir.facts.activation_ranges import ActivationRanges
from ir.facts.int8_plan import Int8Plan
from ir.graph.graph import Graph, Node, Value
from ir.ops.opset import told, upgrade
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.static_quant.operators import Unit, channel_axis, units_of
from passes.static_quant.scales import Layout, lay_out
from passes.static_quant.schemes import Scale, Scheme, bias_codes, weight_codes

OLDEST_OPSET = 13
"""First version of ONNX's operators in which DequantizeLinear knows channels."""


@dataclass(frozen=True)
class InsertStaticQdq(Pass):
    """Put ``QuantizeLinear`` and ``DequantizeLinear`` pairs around what is planned to compute in 8-bit integers.

    Activations get one scale and zero each, from the ranges that `observe` found; weights int8 codes with a scale for
    each output channel and no zero; biases int32 codes whose scale is that of the sum of products. What moves numbers
    (pooling, concatenation, reshapes, padding) shares the scale of what it reads, so that it moves integers. The result
    of a product whose bound (Relu, Clip) is its only reader is rounded behind the bound. All of it is standard ONNX.
    """

    name = "insert-static-qdq"
    requires = ("typed", "activation-ranges", "int8-plan")
    establishes = ("typed",)
    lossy = True

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        plan = graph.required_fact(Int8Plan)
        chosen = set(plan.int8)
        return insert(graph, [unit for unit in units_of(graph) if unit.name in chosen], plan)


def scheme_of(plan: Int8Plan) -> Scheme:
    """How a plan stores numbers."""
    return Scheme(plan.activations, plan.symmetric, plan.weight_bits, plan.per_channel)


def insert(graph: Graph, units: Sequence[Unit], plan: Int8Plan) -> dict[str, int]:
    """Put the pairs around some units, which stand in program order; counts of what was made.

    Args:
        graph: the graph, with observed ranges.
        units: what is to compute in integers.
        plan: says how numbers are stored.

    Raises:
        LadingError: P324 the operators of the graph have no form in a version that knows scales for channels.
    """
    if units:
        _bring_to_channels(graph)
    scheme = scheme_of(plan)
    layout = lay_out(units, graph.required_fact(ActivationRanges).ranges, scheme, plan.widest)
    return _Inserter(graph, units, scheme, layout).run()


def _bring_to_channels(graph: Graph) -> None:
    if graph.opsets.get("", OLDEST_OPSET) >= OLDEST_OPSET:
        return
    blockers = upgrade(graph, OLDEST_OPSET)
    if blockers:
        message = f"weights with a scale for each channel take opset {OLDEST_OPSET}, and {told(blockers)} cannot be brought to it"
        raise LadingError("P324", message, graph.name, "export the model with a newer opset")


class _Inserter:
    """One insertion."""

    def __init__(self, graph: Graph, units: Sequence[Unit], scheme: Scheme, layout: Layout) -> None:
        self.graph = graph
        self.scheme = scheme
        self.layout = layout
        # Edits move readers to new values, so what is read and made is noted before.
        self.reads = [(unit, unit.operands()) for unit in units]
        self.readers = {value for _, operands in self.reads for _, value in operands}
        self.made: dict[Value, tuple[Value, Scale]] = {}
        """What stands for a value that a unit makes, and its scale."""
        self.pairs: dict[tuple[Value, Scale], Value] = {}
        self.numbers: dict[tuple[object, ...], Value] = {}
        self.counts = {"nodes": 0, "products": 0, "quantize": 0, "dequantize": 0}

    def run(self) -> dict[str, int]:
        for unit, operands in self.reads:
            for place, value in operands:
                scale = self.layout.of_operand(unit, place, value)
                self.graph.set_input(unit.head, place, self._operand(unit, value, scale))
            if unit.is_product:
                self._store_weight(unit, self.layout.of_operand(unit, *operands[0]).scale)
                self.counts["products"] += 1
            for result in unit.results:
                self._round(unit, result)
            self.counts["nodes"] += len(unit.nodes)
        return self.counts

    def _operand(self, unit: Unit, value: Value, scale: Scale) -> Value:
        """What a unit reads for a value."""
        base, present = self.made.get(value, (value, None))
        if present == scale:
            return base
        if (base, scale) not in self.pairs:
            if base.const is not None:
                codes = InlineTensor(scale.codes(base.const.load()), scale.dtype)
                stored = self.graph.add_const(f"{base.name}.codes", codes, loc=base.loc)
                node = self._dequantize(stored, base, self._of(scale), unit.head)
            else:
                node = self._pair(base, scale, before=unit.head)
            self.pairs[base, scale] = node.output
        return self.pairs[base, scale]

    def _round(self, unit: Unit, result: Value) -> None:
        """Round what a unit makes, where integers are wanted of it."""
        if unit.row.floats_free and result not in self.readers:
            return
        last = unit.nodes[-1]
        scale = self.layout.made[result]
        pair = self._pair(result, scale, after=last)
        quantize = pair.operand(0).producer
        assert quantize is not None
        self.graph.replace(result, pair.output)
        self.graph.set_input(quantize, 0, result)
        if pair.output.is_output:
            name = result.name
            self.graph.rename(result, self.graph.fresh_name(f"{name}.float"))
            self.graph.rename(pair.output, name)
        self.made[result] = pair.output, scale

    def _pair(self, value: Value, scale: Scale, before: Node | None = None, after: Node | None = None) -> Node:
        """Nodes that round a value to 8 bits and back; returns the second."""
        codes = TensorType(scale.dtype, value.shape)
        inputs = [value, *self._of(scale)]
        quantize = self.graph.add(
            "QuantizeLinear", inputs, outputs=[f"{value.name}.codes"], types=[codes], before=before, after=after,
            loc=value.loc,
        )  # fmt: skip
        self.counts["quantize"] += 1
        following = quantize._next if after is not None else before
        return self._dequantize(quantize.output, value, self._of(scale), following)

    def _dequantize(
        self, codes: Value, like: Value, numbers: Sequence[Value], before: Node | None, axis: int | None = None
    ) -> Node:
        self.counts["dequantize"] += 1
        attrs = {"axis": axis} if axis is not None else None
        name = f"{like.name}.int{codes.dtype.bits}"
        return self.graph.add(
            "DequantizeLinear", [codes, *numbers], attrs, outputs=[name], types=[like.type], before=before, loc=like.loc
        )

    def _of(self, scale: Scale) -> list[Value]:
        """Scale and zero as constants, one pair for all that share them."""
        single = np.array(scale.scale, np.float32)
        zero = np.array(scale.zero, scale.dtype.numpy)
        return [self._number("scale", single, None), self._number("zero", zero, scale.dtype)]

    def _number(self, stem: str, array: np.ndarray, dtype: DType | None) -> Value:
        key = (stem, array.dtype.str, array.shape, array.tobytes())
        if key not in self.numbers:
            self.numbers[key] = self.graph.add_const(stem, InlineTensor(array, dtype))
        return self.numbers[key]

    def _store_weight(self, unit: Unit, operand: float) -> None:
        """Make the weight of a product, and a bias that is part of it, integers."""
        graph, head, weight = self.graph, unit.head, unit.weight
        axis = channel_axis(head)
        array = weight.tensor.load()
        bias = head.input(unit.row.bias) if unit.row.bias is not None else None
        added = bias.tensor.load() if bias is not None else None
        scales = self.scheme.of_weight(array, axis, operand, added)
        codes = graph.add_const(
            f"{weight.name}.codes", InlineTensor(weight_codes(array, scales, axis), I8), loc=weight.loc
        )
        numbers = [*self._scales(f"{weight.name}.scale", scales, I8)]
        assert unit.row.weight is not None
        node = self._dequantize(codes, weight, numbers, head, axis if scales.size > 1 else None)
        graph.set_input(head, unit.row.weight, node.output)
        _drop(graph, weight)
        if bias is None or added is None or unit.row.bias is None:
            return
        sums = (scales.astype(np.float64) * operand).astype(np.float32)
        stored = graph.add_const(f"{bias.name}.codes", InlineTensor(bias_codes(added, sums), I32), loc=bias.loc)
        numbers = self._scales(f"{bias.name}.scale", sums, I32)
        node = self._dequantize(stored, bias, numbers, head, 0 if sums.size > 1 else None)
        graph.set_input(head, unit.row.bias, node.output)
        _drop(graph, bias)

    def _scales(self, name: str, scales: np.ndarray, dtype: DType) -> list[Value]:
        """Scales, and zeros of the same shape."""
        shaped = scales if scales.size > 1 else scales.reshape(())
        zeros = np.zeros(shaped.shape, dtype.numpy)
        return [self.graph.add_const(name, InlineTensor(shaped)), self._number("zeros", zeros, dtype)]


def _drop(graph: Graph, value: Value) -> None:
    if value.graph is graph and not value.use_count:
        graph.erase_const(value)


__all__ = ["InsertStaticQdq", "insert", "scheme_of"]
