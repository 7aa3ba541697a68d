"""Lift an MNN language model back into the IR, in operators that every release computes alike.

The graph comes as MNN's JSON form, which `backends.mnn.read.net_file` reads from a file; weights stay in the weight
file and keep their codes. Operators of later releases are taken apart: rotary embedding, norms with a sum before them
or on packed tensors, the product with SiLU, Attention without a mask or with a packed result. Sizes that the model
computes are worked out while reading. Layouts are forgotten: `backends.mnn.lower.sink_layouts` finds them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frontends.mnn.operators import REFUSED, RULES
from frontends.mnn.shapes import Ints, Size, evaluate, resolve_sizes
from frontends.mnn.weights import WeightFile, listed
from ir.base.diag import LadingError
from ir.base.types import F32, I32, Dim, TensorType
from ir.facts.inputs import Discovery, DynamicInputs
from ir.graph.graph import Graph, Value
from ir.infer.engine import infer_node
from ir.infer.rule_table import TypeMismatch
from ir.target.signature import FedInput, signature
from ir.tensor.inline import InlineTensor


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
    return Lift(net, WeightFile(weights, scale), convention, attention_scale).run()


class Lift:
    """One model being lifted: what each tensor has become, and what builds operators."""

    def __init__(self, net: Mapping[str, Any], weights: WeightFile, convention: str, attention_scale: float) -> None:
        self.net = net
        self.weights = weights
        self.convention = signature(convention)
        self.attention_scale = attention_scale
        self.graph = Graph("main")
        self.seq = self.graph.add_dim(Dim("seq", 1, None))
        self.rows = self.graph.add_dim(Dim("rows", 1, None))
        self.found: dict[int, Value | Ints] = {}
        self.consts: dict[tuple, Value] = {}
        self.index: Value | None = None
        self.op: Mapping[str, Any] = {}

    # ---- the whole graph ----

    def run(self) -> Graph:
        names = self.net["tensorName"]
        if "logits" not in names or "input_ids" not in names:
            raise LadingError("F646", "the model has no tensors input_ids and logits, so it is no language model")
        self._check_indexes(len(names))
        needed = self._needed(names.index("logits"))
        self._refuse_known(needed)
        self._inputs()
        for op in self.net["oplists"]:
            outputs = listed(op.get("outputIndexes"))
            if op.get("type") != "Input" and any(index in needed for index in outputs):
                self._lift(op, outputs)
        logits = self.found.get(names.index("logits"))
        if not isinstance(logits, Value):
            raise LadingError("F646", "nothing computes the logits")
        if self.convention.fed("output-rows") is not None and self.index is None:
            logits = self._cut_rows(logits)
        self._finish(logits)
        return self.graph

    def _check_indexes(self, count: int) -> None:
        for op in self.net["oplists"]:
            places = [*listed(op.get("inputIndexes")), *listed(op.get("outputIndexes"))]
            if any(not 0 <= place < count for place in places):
                self.op = op
                raise self.error("F646", f"an operator speaks of other tensors than the {count} that exist")

    def _refuse_known(self, needed: set[int]) -> None:
        """Name what the model is before an operator that only serves it is missed."""
        for op in self.net["oplists"]:
            reason = REFUSED.get(str(op.get("type")))
            if reason is not None and needed & set(listed(op.get("outputIndexes"))):
                self.op = op
                raise self.error("F644", f"the operator {op['type']} is not read: {reason}")

    def _needed(self, logits: int) -> set[int]:
        producers = {index: op for op in self.net["oplists"] for index in listed(op.get("outputIndexes"))}
        waiting, seen = [logits], set()
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting += listed(producers.get(index, {}).get("inputIndexes"))
        return seen

    def _lift(self, op: Mapping[str, Any], outputs: Sequence[int]) -> None:
        self.op = op
        kind, main = str(op.get("type")), op.get("main", {})
        operands = [self._at(index) for index in listed(op.get("inputIndexes"))]
        if operands and all(isinstance(item, Ints) for item in operands):
            known = evaluate(kind, main, operands)  # type: ignore[arg-type]
            if known is not None:
                self.found[outputs[0]] = known
                return
        rule = RULES.get(kind)
        if rule is None:
            raise self.error("F644", f"the operator {kind} is not read")
        try:
            results = rule(self, main, operands)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            # The rules trust the file; what one lacks or contradicts shows as one of these.
            raise self.error("F646", f"the operator {kind} is malformed: {error}") from error
        for index, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=False):
            self.found[index] = result

    def _at(self, index: int) -> Value | Ints:
        if index not in self.found:
            name = self.net["tensorName"][index]
            raise LadingError("F646", f"the tensor {name!r} is neither an input nor computed before it is read")
        return self.found[index]

    def error(self, code: str, message: str) -> LadingError:
        """An error about the operator at hand."""
        return LadingError(code, message, where=str(self.op.get("name") or self.op.get("type")))

    # ---- inputs and outputs ----

    def _inputs(self) -> None:
        names = self.net["tensorName"]
        declared = {
            names[index]: (index, op.get("main", {}))
            for op in self.net["oplists"]
            if op.get("type") == "Input"
            for index in listed(op.get("outputIndexes"))
        }
        known = {item.name: item for item in signature("mnn-llm").inputs}
        wanted = {item.name for item in self.convention.inputs}
        for name, (index, main) in declared.items():
            if name not in known:
                continue
            fed = known[name]
            value = self.graph.add_input(name, self._input_type(fed, listed(main.get("dims"))), loc=name)
            self.found[index] = value
            if fed.kind == "output-rows":
                self.index = value
        for name in wanted - set(declared):
            if known[name].kind == "attention-mask":
                self.graph.add_input(name, TensorType(F32, ()), loc=name)

    def _input_type(self, fed: FedInput, dims: list[int]) -> TensorType:
        if fed.kind == "embedding-rows":
            if not dims or dims[-1] < 1:
                raise LadingError("F646", f"the width of embedding rows is not declared: {dims}", where=fed.name)
            return TensorType(F32, (self.seq, 1, dims[-1]))
        if fed.kind == "positions":
            return TensorType(I32, (1, self.seq))
        if fed.kind == "output-rows":
            return TensorType(I32, (1,))
        if len(dims) == 5:
            kv = self.graph.add_dim(Dim("kv", 1, None))
            return TensorType(F32, (2, 1, 1, self.seq, kv))
        return TensorType(F32, ())

    def _cut_rows(self, logits: Value) -> Value:
        """Return the rows that logits_index asks for: the model without it returns all."""
        fed = self.convention.fed("output-rows")
        assert fed is not None
        self.index = self.graph.add_input(fed.name, TensorType(I32, (1,)), loc=fed.name)
        cut = self._last_of_sequence(logits)
        readers = cut.uses
        rows = self.slice_rows(cut, cut.type.rank - 2)
        for node, place in readers:
            self.graph.set_input(node, place, rows)
        self._place_after(cut, rows)
        self._retype(rows)
        return rows if cut is logits else logits

    def _last_of_sequence(self, logits: Value) -> Value:
        """The value ``[1, seq, hidden]`` nearest to the logits from which each position is computed on its own."""
        value, found = logits, logits
        alone = ("mnn.Reshape", "mnn.ConvertTensor", "mnn.Convolution", "mnn.LayerNorm", "mnn.Unary")
        while value.producer is not None and value.producer.op in alone:
            value = value.producer.inputs[0]  # type: ignore[assignment]
            if value.shape[:2] == (1, self.seq) and len(value.shape) == 3:
                found = value
        return found

    def _place_after(self, cut: Value, rows: Value) -> None:
        """Move the cut, which was made last, to where its operand is."""
        node = rows.producer
        assert node is not None
        self.graph.move(node, after=cut.producer)

    def _retype(self, rows: Value) -> None:
        behind = {rows}
        for node in self.graph.nodes:
            if node is not rows.producer and any(value in behind for value in node.inputs):
                for value in node.outputs:
                    behind.add(value)
                    shape = tuple(self.rows if dim == self.seq else dim for dim in value.shape)
                    self.graph.set_type(value, TensorType(value.dtype, shape))

    def _finish(self, logits: Value) -> None:
        graph = self.graph
        if graph.has("logits") and logits.name != "logits":
            graph.rename(graph.value("logits"), graph.fresh_name("logits.old"))
        graph.set_outputs([logits])
        graph.rename(logits, self.convention.outputs[0].name)
        for node in reversed(graph.nodes):
            if not any(value.use_count for value in node.outputs):
                graph.erase(node)
        for value in list(graph.consts.values()):
            if value.use_count == 0:
                graph.erase_const(value)
        wanted = {item.name: item for item in self.convention.inputs}
        for value in graph.inputs:
            if value.name not in wanted and value.use_count == 0:
                graph.remove_input(value)
        order = {name: place for place, name in enumerate(wanted)}
        graph.order_inputs(sorted(graph.inputs, key=lambda value: order.get(value.name, 99)))
        discoveries = tuple(_discovery(value, wanted[value.name]) for value in graph.inputs if value.name in wanted)
        graph.set_fact(DynamicInputs.name, DynamicInputs(self.convention.name, discoveries, True, (0,)))

    # ---- building ----

    def add(self, op: str, inputs: Sequence[Value], type: TensorType | None = None, /, **attrs: Any) -> Value:
        """One MNN operator with one output, named after the operator at hand; its type is inferred unless given."""
        name = str(self.op.get("name") or op)
        node = self.graph.add(f"mnn.{op}", inputs, attrs, outputs=[self.graph.fresh_name(name)], loc=name)
        if type is None:
            try:
                (type,) = infer_node(node)  # type: ignore[misc]
            except TypeMismatch as error:
                raise self.error("F645", str(error)) from error
        self.graph.set_type(node.output, type)
        return node.output

    def const(self, array: np.ndarray, stem: str = "const") -> Value:
        """A small constant, shared by equal ones."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.consts:
            self.consts[key] = self.graph.add_const(self.graph.fresh_name(stem), InlineTensor(array))
        return self.consts[key]

    def value(self, item: Value | Ints) -> Value:
        """An operand as a tensor."""
        if isinstance(item, Value):
            return item
        if item.known is None:
            raise self.error("F645", "a size of the run is used as a number, which cannot be worked out here")
        return self.const(np.array(item.known[0] if item.scalar else item.known, np.int32))

    def reshape(self, x: Value, sizes: Sequence[Size]) -> Value:
        """`x` under sizes of which one may be -1 or a size of the run."""
        shape = resolve_sizes(x.shape, sizes)
        if shape is None or sum(isinstance(size, Dim) for size in shape) > 1:
            raise self.error("F645", f"a reshape of {x.type} to {[str(size) for size in sizes]} cannot be worked out")
        if shape == x.shape:
            return x
        dims = tuple(-1 if isinstance(size, Dim) else size for size in shape)
        return self.add("Reshape", [x], TensorType(x.dtype, shape), dims=dims, dim_type="NCHW")

    def slice(self, x: Value, axis: int, points: Sequence[int]) -> tuple[Value, ...]:
        """`x` cut along an axis."""
        name = str(self.op.get("name"))
        names = [self.graph.fresh_name(f"{name}.part") for _ in range(len(points) + 1)]
        node = self.graph.add("mnn.Slice", [x], {"axis": axis, "points": tuple(points)}, outputs=names, loc=name)
        for output, type_ in zip(node.outputs, infer_node(node), strict=True):
            self.graph.set_type(output, type_)
        return node.outputs

    def slice_rows(self, x: Value, axis: int) -> Value:
        """The rows of `x` that logits_index asks for."""
        ends = [self.const(np.array([number], np.int32)) for number in (2**31 - 1, axis, 1)]
        shape = tuple(self.rows if place == axis else size for place, size in enumerate(x.shape))
        assert self.index is not None
        return self.add("StridedSlice", [x, self.index, *ends], TensorType(x.dtype, shape))

    def norm(self, x: Value, main: Mapping[str, Any], op: Mapping[str, Any], *, gain_alone: bool = False) -> Value:
        """A norm of the last axis of `x`; `gain_alone` as in `WeightFile.vectors`."""
        gamma, beta = self.weights.vectors(op, int(x.shape[-1]), gain_alone)
        parts = [
            self.graph.add_const(self.graph.fresh_name(f"{op.get('name')}.{word}"), part)
            for word, part in (("gamma", gamma), ("beta", beta))
        ]
        epsilon = float(main.get("epsilon", 0.0))
        return self.add(
            "LayerNorm", [x, *parts], x.type, axis=(-1,), epsilon=epsilon, rms=int(main.get("useRMSNorm", False))
        )


def _discovery(value: Value, fed: FedInput) -> Discovery:
    return Discovery(
        value.name, fed.kind, "runtime-feeds", "the model declares the input or the runtime feeds it", "", fed.default,
        fed.shapes, fed.low, fed.high, fed.meaning,
    )  # fmt: skip
