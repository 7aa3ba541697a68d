"""Empirical bias correction: what rounding moves the mean of a channel by is taken back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ir.base.types import F32, TensorType
from ir.evaluate.evaluator import Evaluator
from ir.facts.int8_plan import Int8Plan
from ir.graph.copy import copied
from ir.graph.graph import Graph, Value
from ir.quant.statistics.samples import Samples
from ir.tensor.inline import InlineTensor
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.options import option
from passes.static_quant.fold_batch_norms import replace_const
from passes.static_quant.measure import quantized_copy
from passes.static_quant.observe import required_samples
from passes.static_quant.operators import Unit, output_axis, units_of

AXES_OPSET = 18
"""First version of ONNX's operators in which the axes of ReduceMean are an input."""


@dataclass(frozen=True)
class BiasCorrect(Pass):
    """Change the biases of layers in 8-bit integers so that rounding leaves the mean of each channel where it was.

    The float model and the rounded one are run on calibration samples; what the mean of a channel in front of its bound
    (Relu, Clip) moves by is subtracted from the bias (Nagel et al., Data-Free Quantization through Weight Equalization
    and Bias Correction, 2019, appendix D). A layer is corrected with the layers before it corrected already: within one
    sample the rounded model takes the difference back as it goes, and the bias takes the average over samples.
    """

    name = "bias-correct"
    requires = ("typed", "activation-ranges", "int8-plan")
    lossy = True

    samples: int = option(32, help="most samples to run", low=1)
    threads: int = option(0, help="threads of the evaluation; 0 for one per processor", low=0)

    def run(self, graph: Graph, ctx: PassContext) -> Mapping[str, int]:
        """See `Pass.run`."""
        plan = graph.required_fact(Int8Plan)
        samples = required_samples(ctx).calibration.first(self.samples)
        units = list(_correctable(graph, plan))
        if not units:
            return {"corrected": 0}
        moved = _moved(graph, units, plan, samples, self.threads or None, ctx)
        for unit, shift in zip(units, moved, strict=True):
            _correct(graph, unit, shift)
        return {"corrected": len(units)}


def _correctable(graph: Graph, plan: Int8Plan) -> Iterator[Unit]:
    """Products in integers that have a bias, or a place for one."""
    chosen = set(plan.int8)
    for unit in units_of(graph):
        if unit.is_product and unit.name in chosen and (unit.row.bias is not None or unit.bias is not None):
            yield unit


def sums_of(unit: Unit) -> Value:
    """What comes out of a product with its bias, in front of its bound."""
    return unit.bias[0].output if unit.bias is not None else unit.head.output


def _moved(
    graph: Graph,
    units: Sequence[Unit],
    plan: Int8Plan,
    samples: Samples,
    threads: int | None,
    ctx: PassContext,
) -> list[np.ndarray]:
    """float64[channels] for each unit: what rounding moves the mean of each channel by."""
    names = [sums_of(unit).name for unit in units]
    axes = [output_axis(unit.head) for unit in units]
    floats = copied(graph)
    means = [_mean(floats, floats.value(name), axis) for name, axis in zip(names, axes, strict=True)]
    exact = Evaluator(floats, [value.name for value in means], threads=threads)
    rounded = quantized_copy(graph, set(plan.int8), plan)
    wanted = [rounded.add_input(f"{name}.wanted", TensorType(F32, None)) for name in names]
    shifts = [_undone(rounded, name, axis, value) for name, axis, value in zip(names, axes, wanted, strict=True)]
    corrected = Evaluator(rounded, [value.name for value in shifts], threads=threads)
    totals: list[np.ndarray] = []
    for number, feed in enumerate(samples):
        ctx.progress(number, len(samples), "correcting biases")
        found = exact.run(feed)
        given = {value.name: found[mean.name] for value, mean in zip(wanted, means, strict=True)}
        needed = {value.name for value in corrected.needed}
        run = corrected.run({name: array for name, array in {**feed, **given}.items() if name in needed})
        moved = [run[value.name].reshape(-1).astype(np.float64) for value in shifts]
        totals = [one + other for one, other in zip(totals, moved, strict=True)] if totals else moved
    ctx.progress(len(samples), len(samples), "correcting biases")
    return [total / len(samples) for total in totals]


def _mean(graph: Graph, value: Value, axis: int) -> Value:
    """The mean of a value over all axes but one, which stay with length 1."""
    axes = [place for place in range(value.rank or 0) if place != axis]
    after = value.producer
    if graph.opsets.get("", AXES_OPSET) < AXES_OPSET:
        node = graph.add("ReduceMean", [value], {"axes": tuple(axes), "keepdims": 1}, after=after)
    else:
        place = graph.add_const("axes", InlineTensor(np.array(axes, np.int64)))
        node = graph.add("ReduceMean", [value, place], {"keepdims": 1}, after=after)
    return node.output


def _undone(graph: Graph, name: str, axis: int, wanted: Value) -> Value:
    """Take from a value what its means are off; returns by how much."""
    value = graph.value(name)
    mean = _mean(graph, value, axis)
    shift = graph.add("Sub", [mean, wanted], after=mean.producer)
    back = graph.add("Sub", [value, shift.output], types=[value.type], after=shift)
    graph.replace(value, back.output)
    for node, place in ((mean.producer, 0), (back, 0)):
        assert node is not None
        graph.set_input(node, place, value)
    return shift.output


def _correct(graph: Graph, unit: Unit, shift: np.ndarray) -> None:
    bias = unit.bias_value()
    if unit.bias is not None and bias is not None:
        array = bias.tensor.load()
        node, place = unit.bias
        replace_const(graph, node, place, (array - shift.reshape(array.shape)).astype(np.float32), bias.name)
        return
    old = bias.tensor.load() if bias is not None else np.zeros(shift.shape, np.float32)
    assert unit.row.bias is not None
    added = (old - shift.reshape(old.shape)).astype(np.float32)
    replace_const(graph, unit.head, unit.row.bias, added, f"{unit.name}.bias")


__all__ = ["BiasCorrect"]
