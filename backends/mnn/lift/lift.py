"""Lift an MNN language model back into the IR, in operators that every release computes alike.

The graph comes as MNN's JSON form, which `backends.mnn.read.net_file` reads from a file; weights stay in the weight
file and keep their codes. How an operator is read stands in its row (`backends.mnn.dialect`); those of later releases
are taken apart: rotary embedding, norms with a sum before them or on packed tensors, the product with SiLU, Attention
without a mask or with a packed result. Sizes that the model computes are worked out while reading. Layouts are
forgotten: `backends.mnn.lower.sink_layouts` finds them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.mnn.dialect.builder import Builder
from backends.mnn.dialect.table import READ, evaluate
from backends.mnn.lift.convention import cut_rows, declare_inputs, finish
from backends.mnn.read.net_file import numbers
from backends.mnn.read.sizes import Ints
from backends.mnn.read.stored_tensors import WeightFile
from ir.base.diag import LadingError
from ir.graph.graph import Graph, Value
from ir.target.signature import signature


def lift(
    net: Mapping[str, Any],
    weights: Path,
    *,
    convention: str = "mnn-llm",
    attention_scale: float = 0.0,
    scale: str = "",
) -> Graph:
    """The decoder of an MNN model as a graph that `backends.mnn` can write.

    Args:
        net: MNN's JSON form of the model file.
        weights: the external weight file.
        convention: calling convention of the result; inputs are added or dropped to fit it.
        attention_scale: factor of attention scores where the configuration sets one, else 0.
        scale: storage of quantization scales, see `WeightFile`.

    Raises:
        LadingError: F642 weights cut off, F643 weights in a form that is not read, F644 an operator that is not read,
            F645 sizes that cannot be worked out, F646 no decoder.
    """
    return _Lift(net, Builder(WeightFile(weights, scale), signature(convention), attention_scale)).run()


class _Lift:
    """One model being lifted."""

    def __init__(self, net: Mapping[str, Any], builder: Builder) -> None:
        self.net = net
        self.builder = builder
        self.level = _Level(net["tensorName"], net["oplists"], builder)
        self.subgraphs = {str(graph.get("name")): graph for graph in net.get("subgraphs", ())}
        builder.inner = self._inner

    def run(self) -> Graph:
        names = self.net["tensorName"]
        if "logits" not in names or "input_ids" not in names:
            raise LadingError("F646", "the model has no tensors input_ids and logits, so it is no language model")
        wanted = names.index("logits")
        found = self.level.run([wanted], lambda: declare_inputs(self.builder, self.net))
        logits = found.get(wanted)
        if not isinstance(logits, Value):
            raise LadingError("F646", "nothing computes the logits")
        if self.builder.convention.fed("output-rows") is not None and self.builder.index is None:
            logits = cut_rows(self.builder, logits)
        finish(self.builder, logits)
        return self.builder.graph

    def _inner(self, name: str, operand: Value) -> Value:
        """What the subgraph of a name makes of an operand, put into the graph."""
        graph, op = self.subgraphs.get(name), self.builder.op
        if graph is None:
            raise self.builder.error("F646", f"the model has no graph {name}")
        inputs, outputs = numbers(graph.get("inputs")), numbers(graph.get("outputs"))
        names = graph.get("tensors", [])
        if len(inputs) != 1 or len(outputs) != 1 or not all(0 <= place < len(names) for place in (*inputs, *outputs)):
            raise self.builder.error("F646", f"the graph {name} does not make one tensor of one")
        level = _Level(names, graph.get("nodes", []), self.builder)
        result = level.run(outputs, lambda: {inputs[0]: operand}).get(outputs[0])
        self.builder.op = op
        if not isinstance(result, Value):
            raise self.builder.error("F646", f"nothing computes the result of the graph {name}")
        return result


class _Level:
    """The main graph or a subgraph: its operators in their order, and what each tensor has become."""

    def __init__(self, names: Sequence[str], ops: Sequence[Mapping[str, Any]], builder: Builder) -> None:
        self.names = names
        self.ops = ops
        self.builder = builder
        self.found: dict[int, Value | Ints] = {}

    def run(
        self, wanted: Sequence[int], inputs: Callable[[], Mapping[int, Value | Ints]]
    ) -> Mapping[int, Value | Ints]:
        """Put what the wanted tensors need into the graph; `inputs` gives those that nothing here computes."""
        self._check_indexes(len(self.names))
        needed = self._needed(wanted)
        self.found.update(inputs())
        for op in self.ops:
            outputs = numbers(op.get("outputIndexes"))
            if op.get("type") != "Input" and any(index in needed for index in outputs):
                self._lift(op, outputs)
        return self.found

    def _check_indexes(self, count: int) -> None:
        for op in self.ops:
            places = [*numbers(op.get("inputIndexes")), *numbers(op.get("outputIndexes"))]
            if any(not 0 <= place < count for place in places):
                self.builder.op = op
                raise self.builder.error("F646", f"an operator speaks of other tensors than the {count} that exist")

    def _needed(self, wanted: Sequence[int]) -> set[int]:
        producers = {index: op for op in self.ops for index in numbers(op.get("outputIndexes"))}
        waiting, seen = list(wanted), set[int]()
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting += numbers(producers.get(index, {}).get("inputIndexes"))
        return seen

    def _lift(self, op: Mapping[str, Any], outputs: Sequence[int]) -> None:
        self.builder.op = op
        kind, main = str(op.get("type")), op.get("main", {})
        operands = [self._at(index) for index in numbers(op.get("inputIndexes"))]
        sizes = [item for item in operands if isinstance(item, Ints)]
        if operands and len(sizes) == len(operands):
            known = evaluate(kind, main, sizes)
            if known is not None:
                self.found[outputs[0]] = known
                return
        row = READ.get(kind)
        if row is None or row.decode is None:
            raise self.builder.error("F644", f"the operator {kind} is not read")
        try:
            results = row.decode(self.builder, main, operands)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            # Decoders trust the file; what one lacks or contradicts shows as one of these.
            raise self.builder.error("F646", f"the operator {kind} is malformed: {error}") from error
        for index, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=False):
            self.found[index] = result

    def _at(self, index: int) -> Value | Ints:
        if index not in self.found:
            name = self.names[index]
            raise LadingError("F646", f"the tensor {name!r} is neither an input nor computed before it is read")
        return self.found[index]
