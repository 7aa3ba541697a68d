"""Descriptions of tensors, by which a release computes with integers.

MNN computes a convolution with integers when its weights are codes of 8 bits without zeros, one scale for each output
channel, and the tensors that it reads and makes are both described (``extraTensorDescribe``). It casts where neighbours
compute with floats, and hands descriptions on through operators that move or pool numbers. Not all of those are right
on x86, where codes lie in memory as unsigned numbers and pooling compares them as signed ones. They are kept from it
by a description of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from backends.mnn.modules.edit.codes import CodeRange
from backends.mnn.modules.edit.edited import Edited, plain
from backends.mnn.modules.edit.net import Net, Operator, table
from backends.mnn.modules.edit.relink import New, Scalar
from backends.mnn.modules.edit.weights import CONVOLUTIONS, raised_parts
from backends.mnn.read.net_file import slot_of
from ir.graph.graph import Graph
from ir.quant.weight import QuantizedWeight

MOVING = frozenset(
    {"ConvertTensor", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Permute", "Transpose", "ExpandDims"}
)
"""Operators that leave numbers as they are."""

CUTTING = ("Slice", "SliceTf", "StridedSlice")
"""Operators that take a part of what they read."""

HANDED_ON = ("Pooling", "ReLU", "Interp")
"""Operators besides those through which descriptions are handed on."""

ARITHMETIC = ("ADD", "SUB", "MUL")
"""Binary operations that are right on integers."""

LEAST_SCALE = 1e-6
"""Smaller scales of weights are taken for this one by the depthwise convolution."""


MOST_SHOWN = 0.1
"""Steps of a result that raised scales may be off by."""


class Integers:
    """Describes tensors of the main graph, so that what is to be computed with integers is, and nothing else."""

    def __init__(
        self,
        net: Net,
        ranges: Mapping[str, CodeRange],
        integers: Mapping[int, QuantizedWeight],
        result: Edited,
        graph: Graph,
    ) -> None:
        self.net, self.ranges, self.integers, self.result, self.graph = net, ranges, integers, result, graph
        self.operators = [operator for operator in net.levels[0] if operator.outputs]
        self.found: dict[int, CodeRange] = {}
        self.wanted: dict[int, CodeRange] = {}
        self.chosen: dict[int, Operator] = {}
        self.readers: dict[int, list[Operator]] = {}
        for operator in self.operators:
            for tensor in dict.fromkeys(operator.inputs):
                self.readers.setdefault(tensor, []).append(operator)

    def describe(self) -> None:
        """Find the codes of each tensor and say so where something computes with them."""
        self._resolve()
        self._bar()
        for operator in self.operators:
            if id(operator) in self.integers:
                self._convolution(operator)
        self._between()
        self._cut_by_casts()
        for operator in self.chosen.values():
            if operator.type == "BinaryOp":
                self._binary(operator)
        self._keep_apart()
        for tensor, codes in sorted(self.wanted.items()):
            self.net.described[tensor] = _described(tensor, codes)

    # ---- codes of tensors ----

    def _resolve(self) -> None:
        """The codes of each tensor: by name, or those of the tensor that it is a part, or another layout, of."""
        for tensor, said in enumerate(self.net.names):
            name = plain(said)
            if name in self.ranges:
                self.found[tensor] = self.ranges[name]
        for operator in self.operators:
            if operator.type in (*MOVING, *CUTTING) and operator.inputs and operator.inputs[0] in self.found:
                for result in operator.outputs:
                    self.found.setdefault(result, self.found[operator.inputs[0]])
        for operator in reversed(self.operators):
            moving = operator.type in (*MOVING, "Concat") or _cuts(operator)
            if not moving or operator.outputs[0] not in self.found:
                continue
            for source in operator.inputs if operator.type == "Concat" else operator.inputs[:1]:
                # What others read besides may have been rounded otherwise, or not at all.
                if len(self.readers[source]) == 1:
                    self.found.setdefault(source, self.found[operator.outputs[0]])

    def _bar(self) -> None:
        """Forget the codes of what operators make that would compute wrong with integers, were their results described.

        A description of what is made of it without arithmetic would be handed on to it.
        """
        barred = {
            operator.outputs[0]
            for operator in self.operators
            if operator.type == "BinaryOp" and not _arithmetic(operator)
        }
        for operator in self.operators:
            handing = operator.type in (*MOVING, *CUTTING, *HANDED_ON, "Concat", "ReLU6")
            if handing and barred.intersection(operator.inputs):
                barred.update(operator.outputs)
        for tensor in barred:
            self.found.pop(tensor, None)

    def _made(self, operator: Operator) -> tuple[int, CodeRange | None, list[Operator]]:
        """What an operator makes when it computes with integers: the tensor behind all that only cuts numbers off.

        Returns:
            The tensor, its codes, and the operators that cut off, which those codes do.
        """
        tensor, cut = operator.outputs[0], []
        best: tuple[int, CodeRange | None, list[Operator]] = (tensor, self.found.get(tensor), [])
        while len(self.readers.get(tensor, ())) == 1 and _cuts(self.readers[tensor][0]):
            cut.append(self.readers[tensor][0])
            tensor = cut[-1].outputs[0]
            if tensor in self.found:
                best = (tensor, self.found[tensor], [*cut])
        codes = best[1]
        if any(reader.type == "Pooling3D" and not self._is_plane(reader) for reader in self.readers.get(best[0], ())):
            return best[0], None, []
        for each in best[2]:
            assert codes is not None
            codes = _within(codes, *_bounds(each))
        return best[0], codes, best[2]

    def _is_plane(self, operator: Operator) -> bool:
        """True for pooling over all of height and width, spelled as pooling in three dimensions."""
        name = plain(self.net.names[operator.outputs[0]])
        rank = self.graph.value(name).rank if self.graph.has(name) else None
        return rank == 4 and bool(operator.main.get("isGlobal"))

    # ---- operators ----

    def _move(self, operator: Operator, result: int, codes: CodeRange, cut: list[Operator]) -> None:
        """Let an operator make a tensor of these codes, which are within what other operators would cut off."""
        if result != operator.outputs[0]:
            operator.makes = [result]
        for each in cut:
            each.removed = True
        self.wanted[result] = codes

    def _choose(self, operator: Operator, result: int, codes: CodeRange, cut: list[Operator]) -> None:
        """Let an operator compute with integers and make a tensor of these codes."""
        self._move(operator, result, codes, cut)
        self.chosen[id(operator)] = operator
        self.result.integer.append(operator.name)

    def _convolution(self, operator: Operator) -> None:
        source, weight = operator.inputs[0], self.integers[id(operator)]
        result, codes, cut = self._made(operator)
        reason = ""
        if source not in self.found:
            reason = "no codes are known of the tensor that it reads"
        elif codes is None:
            reason = "no codes are known of the tensor that it makes"
        elif operator.type == "ConvolutionDepthwise":
            reason = self._raise_scales(operator, weight, self.found[source].scale, codes.scale)
        if reason or codes is None:
            self.result.floats[operator.name] = reason
            return
        common = operator.main["common"]
        if common.get("relu") or common.get("relu6"):
            codes = _within(codes, 0.0, 6.0 if common.get("relu6") else np.inf)
        given = self.found[source]
        self.wanted.setdefault(source, given)
        operator.fields["symmetricQuan"] = table(
            "QuantizedFloatParam",
            {"method": 0, "nbits": 8, "zeroPoint": given.zero, "outputZeroPoint": codes.zero, "clampMin": codes.low,
             "clampMax": codes.high},
        )  # fmt: skip
        quan = operator.fields["quanParameter"]
        operator.fields["quanParameter"] = _with_scales(quan, given.scale, codes.scale)
        self._choose(operator, result, codes, cut)

    def _raise_scales(self, operator: Operator, weight: QuantizedWeight, given: float, made: float) -> str:
        """Raise scales of weights that the kernel would raise by itself, with other codes; why not, where it shows."""
        scales = np.abs(weight.scale.load()).reshape(-1)
        small = scales[scales < LEAST_SCALE]
        if not small.size:
            return ""
        # All codes of a channel off by a half, at the largest numbers.
        shown = 0.5 * LEAST_SCALE * weight.shape[1] * 255 * given / made
        if shown > MOST_SHOWN:
            return f"scales of its weights are below {LEAST_SCALE}"
        operator.parts = raised_parts(weight, self.net.floats(operator)[1], LEAST_SCALE)
        return ""

    def _between(self) -> None:
        """Let what stands between convolutions compute with integers, where it is right."""
        changed = True
        while changed:
            changed = False
            for operator in self.operators:
                given = operator.inputs if operator.type in ("BinaryOp", "Concat") else operator.inputs[:1]
                if id(operator) in self.chosen or not given or any(tensor not in self.wanted for tensor in given):
                    continue
                if operator.type == "BinaryOp" and _arithmetic(operator):
                    result, codes, cut = self._made(operator)
                    if codes is not None:
                        changed = True
                        self._choose(operator, result, codes, cut)
                elif operator.type in (*MOVING, *CUTTING, "Concat"):
                    result, codes, cut = self._made(operator)
                    if codes is None or result in self.wanted or (cut and len(operator.outputs) > 1):
                        continue
                    if all(self.wanted[tensor].alike(codes) for tensor in given):
                        changed = True
                        self._move(operator, result, codes, cut)

    def _binary(self, operator: Operator) -> None:
        if operator.main.get("activationType"):
            # The kernel cuts off at code 0, which is not that of the number 0.
            operator.fields["activationType"] = Scalar("i", 0)
            result = operator.outputs[0]
            self.wanted[result] = _within(self.wanted[result], 0.0, np.inf)

    def _cut_by_casts(self) -> None:
        """Leave out what only cuts numbers off in front of operators on integers: the cast in front of these does."""
        for operator in self.operators:
            if operator.removed or not _cuts(operator):
                continue
            source, result = operator.inputs[0], operator.outputs[0]
            readers = self.readers.get(result, [])
            if result not in self.wanted or len(self.readers[source]) != 1 or source in self.wanted:
                continue
            if not readers or any(id(reader) not in self.chosen for reader in readers):
                continue
            for reader in readers:
                reader.reads = [source if tensor == result else tensor for tensor in reader.inputs]
            operator.removed = True
            self.wanted[source] = _within(self.wanted.pop(result), *_bounds(operator))

    def _keep_apart(self) -> None:
        """Keep operators that are wrong on integers from computing with them.

        A description is handed on to what has none, and pooling computes with integers when both sides are described
        alike. One whose scale differs by the last bit makes it compute with floats, and stands for the same codes. A
        convolution is taken for one on integers when its weights are not in the net and both sides are described.
        """
        for operator in self.operators:
            if operator.removed or not operator.inputs or operator.inputs[0] not in self.wanted:
                continue
            given, result = self.wanted[operator.inputs[0]], operator.outputs[0]
            if operator.type == "Pooling3D":
                # It would be taken apart into pooling whose tensors cannot be described.
                operator.becomes = ("Pooling", "Pool", _whole_plane(operator))
            if operator.type in (*HANDED_ON, "Pooling3D"):
                codes = self.found.get(result, given)
                if operator.type == "Interp":
                    codes = given
                elif codes.alike(given):
                    codes = replace(codes, scale=float(np.nextafter(np.float32(codes.scale), np.float32(np.inf))))
                self.wanted[result] = codes
        for operator in self.operators:
            described = all(tensor in self.wanted for tensor in (*operator.inputs[:1], *operator.outputs))
            if operator.type in CONVOLUTIONS and id(operator) not in self.chosen and described:
                operator.inside = True
                if operator.parts is not None:
                    operator.parts = None
                    del operator.fields["quanParameter"]
                    _, _, storage = self.result.weights.pop(operator.name)
                    self.result.stored[storage.bits] -= 1
                    self.result.lost[operator.name] = "MNN would compute with integers, which is not right here"


def _arithmetic(operator: Operator) -> bool:
    return operator.main.get("opType") in ARITHMETIC and operator.main.get("activationType", 0) in (0, 1)


def _cuts(operator: Operator) -> bool:
    """True for what only cuts numbers off."""
    return operator.type == "ReLU6" or (operator.type == "ReLU" and not operator.main.get("slope"))


def _bounds(operator: Operator) -> tuple[float, float]:
    if operator.type == "ReLU":
        return 0.0, np.inf
    return float(operator.main.get("minValue", 0.0)), float(operator.main.get("maxValue", 6.0))


def _within(codes: CodeRange, low: float, high: float) -> CodeRange:
    """Codes of numbers that are cut off at two others."""
    least = codes.low if low == -np.inf else round(low / codes.scale) + codes.zero
    most = codes.high if high == np.inf else round(high / codes.scale) + codes.zero
    return replace(codes, low=min(max(codes.low, least), codes.high), high=max(min(codes.high, most), codes.low))


def _whole_plane(operator: Operator) -> New:
    """Pooling over all of height and width."""
    kind = 1 if operator.main.get("type") == "AVEPOOL" else 0
    numbers = {"padX": 0, "padY": 0, "kernelX": 1, "kernelY": 1, "strideX": 1, "strideY": 1, "padType": 0}
    return table("Pool", {**numbers, "isGlobal": True, "type": kind, "dataType": 1, "ceilModel": False, "countType": 0})


def _with_scales(quan: object, given: float, made: float) -> New:
    assert isinstance(quan, New)
    scales = {slot_of("IDSTQuan", "scaleIn"): Scalar("f", given), slot_of("IDSTQuan", "scaleOut"): Scalar("f", made)}
    return New({**quan.fields, **scales})


def _described(tensor: int, codes: CodeRange) -> New:
    info = table(
        "TensorQuantInfo",
        {"scale": codes.scale, "zero": float(codes.zero), "min": float(codes.low), "max": float(codes.high), "type": 6},
    )
    return table("TensorDescribe", {"index": tensor, "quantInfo": info})


__all__ = ["Integers"]
