"""Descriptions of tensors, by which a release computes with integers.

MNN computes a convolution with integers when its weights are codes of 8 bits without zeros, one scale for each output
channel, and the tensors that it reads and makes are both described (``extraTensorDescribe``). It casts where neighbours
compute with floats, and hands descriptions on through operators that move or pool numbers. Not all of those are right
on x86, where codes lie in memory as unsigned numbers and pooling compares them as signed ones. They are kept from it
by a description of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from backends.mnn.modules.edit.codes import CodeRange
from backends.mnn.modules.edit.edited import Edited, plain
from backends.mnn.modules.edit.net import Net, Operator, table
from backends.mnn.modules.edit.relink import New, Scalar
from backends.mnn.read.net_file import slot_of
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


class Integers:
    """Describes tensors of the main graph, so that what is to be computed with integers is, and nothing else."""

    def __init__(
        self,
        net: Net,
        ranges: Mapping[str, CodeRange],
        integers: Mapping[int, QuantizedWeight],
        result: Edited,
    ) -> None:
        self.net, self.ranges, self.integers, self.result = net, ranges, integers, result
        self.operators = net.levels[0]
        self.makers = {tensor: operator for operator in self.operators for tensor in operator.outputs}
        self.found: dict[int, CodeRange] = {}

    def describe(self) -> None:
        """Find the codes of each tensor and say so where something computes with them."""
        self._resolve()
        self._bar()
        wanted: dict[int, CodeRange] = {}
        for operator in self.operators:
            if id(operator) in self.integers:
                self._convolution(operator, wanted)
        self._between(wanted)
        self._keep_apart(wanted)
        for tensor, codes in sorted(wanted.items()):
            self.net.described[tensor] = _described(tensor, codes)

    def _resolve(self) -> None:
        """The codes of each tensor: by name, or those of the tensor that it is a part, or another layout, of."""
        for tensor, said in enumerate(self.net.names):
            name = plain(said)
            if name in self.ranges:
                self.found[tensor] = self.ranges[name]
        readers = Counter(tensor for operator in self.operators for tensor in operator.inputs)
        for operator in self.operators:
            if operator.type in (*MOVING, *CUTTING) and operator.inputs and operator.inputs[0] in self.found:
                for result in operator.outputs:
                    self.found.setdefault(result, self.found[operator.inputs[0]])
        for operator in reversed(self.operators):
            if operator.type not in (*MOVING, "Concat") or operator.outputs[0] not in self.found:
                continue
            for source in operator.inputs if operator.type == "Concat" else operator.inputs[:1]:
                # What others read besides may have been rounded otherwise, or not at all.
                if readers[source] == 1:
                    self.found.setdefault(source, self.found[operator.outputs[0]])

    def _bar(self) -> None:
        """Forget the codes of what operators make that would compute wrong with integers, were their results described.

        A description of what is made of it without arithmetic would be handed on to it.
        """
        barred = {
            operator.outputs[0]
            for operator in self.operators
            if operator.type == "BinaryOp" and not self._arithmetic(operator)
        }
        for operator in self.operators:
            if operator.type in (*MOVING, *CUTTING, *HANDED_ON, "Concat") and barred.intersection(operator.inputs):
                barred.update(operator.outputs)
        for tensor in barred:
            self.found.pop(tensor, None)

    def _convolution(self, operator: Operator, wanted: dict[int, CodeRange]) -> None:
        source, result = operator.inputs[0], operator.outputs[0]
        common = operator.main["common"]
        reason = ""
        for tensor, what in ((source, "reads"), (result, "makes")):
            if tensor not in self.found:
                reason = f"no codes are known of the tensor that it {what}"
        weight = self.integers[id(operator)]
        if operator.type == "ConvolutionDepthwise" and np.abs(weight.scale.load()).min() < LEAST_SCALE:
            reason = f"scales of its weights are below {LEAST_SCALE}"
        if reason:
            self.result.floats[operator.name] = reason
            return
        codes = self.found[result]
        if common.get("relu") or common.get("relu6"):
            codes = replace(codes, low=max(codes.low, codes.zero))
        if common.get("relu6"):
            codes = replace(codes, high=min(codes.high, codes.zero + round(6 / codes.scale)))
        given = self.found[source]
        wanted.setdefault(source, given)
        wanted[result] = codes
        operator.fields["symmetricQuan"] = table(
            "QuantizedFloatParam",
            {"method": 0, "nbits": 8, "zeroPoint": given.zero, "outputZeroPoint": codes.zero, "clampMin": codes.low,
             "clampMax": codes.high},
        )  # fmt: skip
        quan = operator.fields["quanParameter"]
        operator.fields["quanParameter"] = _with_scales(quan, given.scale, codes.scale)
        self.result.integer.append(operator.name)

    def _between(self, wanted: dict[int, CodeRange]) -> None:
        """Let what stands between convolutions compute with integers, where it is right."""
        changed = True
        while changed:
            changed = False
            for operator in self.operators:
                given = operator.inputs if operator.type in ("BinaryOp", "Concat") else operator.inputs[:1]
                if not given or any(tensor not in wanted for tensor in given):
                    continue
                result = operator.outputs[0]
                if result in wanted or result not in self.found:
                    continue
                codes = self.found[result]
                moving = operator.type in (*MOVING, *CUTTING, "Concat")
                alike = all(wanted[tensor].alike(codes) for tensor in given)
                if (moving and alike) or (operator.type == "BinaryOp" and self._arithmetic(operator)):
                    changed = True
                    wanted[result] = codes
        for operator in self.operators:
            if operator.type == "BinaryOp" and all(t in wanted for t in (*operator.inputs, *operator.outputs)):
                self._binary(operator, wanted)

    @staticmethod
    def _arithmetic(operator: Operator) -> bool:
        return operator.main.get("opType") in ARITHMETIC and operator.main.get("activationType", 0) in (0, 1)

    def _binary(self, operator: Operator, wanted: dict[int, CodeRange]) -> None:
        if not self._arithmetic(operator):
            return
        result = operator.outputs[0]
        if operator.main.get("activationType"):
            # The kernel cuts off at code 0, which is not that of the number 0.
            operator.fields["activationType"] = Scalar("i", 0)
            wanted[result] = replace(wanted[result], low=max(wanted[result].low, wanted[result].zero))
        self.result.integer.append(operator.name)

    def _keep_apart(self, wanted: dict[int, CodeRange]) -> None:
        """Keep operators that are wrong on integers from computing with them.

        A description is handed on to what has none, and pooling computes with integers when both sides are described
        alike. One whose scale differs by the last bit makes it compute with floats, and stands for the same codes.
        """
        for operator in self.operators:
            if operator.type not in HANDED_ON or operator.inputs[0] not in wanted:
                continue
            given, result = wanted[operator.inputs[0]], operator.outputs[0]
            codes = self.found.get(result, given)
            if operator.type == "Interp":
                codes = given
            elif codes.alike(given):
                codes = replace(codes, scale=float(np.nextafter(np.float32(codes.scale), np.float32(np.inf))))
            wanted[result] = codes


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
