"""The weights of a converted net as the codes that the graph remembers.

Each operator of a net carries the name of the value that it computes. Whose weights these are is certain only when
the numbers are equal, so that is what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from backends.mnn.modules.edit.codes import codes_of, is_half
from backends.mnn.modules.edit.edited import Edited, plain
from backends.mnn.modules.edit.net import Net, Operator, table
from backends.mnn.modules.edit.take_qdq import WEIGHED
from backends.mnn.write.packing import pack_codes, quantize_pack
from ir.graph.graph import Graph, Node
from ir.quant.storage import Storage
from ir.quant.weight import QuantizedWeight

TAKEN_IN = frozenset(
    {"Add", "Sub", "Mul", "Div", "BatchNormalization", "Relu", "Clip", "Reshape", "Squeeze", "Unsqueeze"}
)
"""Operators that the converter may take into the one before."""

MOST_TAKEN_IN = 5
"""How many of those are looked at."""

CONVOLUTIONS = ("Convolution", "ConvolutionDepthwise")
"""Operators that hold codes."""


class Weights:
    """Finds the codes of convolutions.

    Attributes:
        integers: the convolutions that can compute with integers.
    """

    def __init__(self, net: Net, graph: Graph, result: Edited, ranges: bool) -> None:
        self.net, self.result, self.ranges = net, result, ranges
        self.integers: dict[int, QuantizedWeight] = {}
        self.readers: dict[str, Node] = {}
        for one in graph.graphs():
            for node in one.nodes:
                weight = node.input(1)
                if node.op in WEIGHED and weight is not None and weight.const is not None:
                    self._name(node)

    def _name(self, reader: Node) -> None:
        """Note the names that the converter may give the operator: that of the value, or of what it takes in behind it."""
        node = reader
        for _ in range(MOST_TAKEN_IN):
            self.readers.setdefault(node.output.name, reader)
            users = node.output.users
            if len(users) != 1 or users[0].op not in TAKEN_IN:
                return
            node = users[0]

    def store(self, operator: Operator) -> None:
        """Put the codes of one operator in the place of its floats."""
        if operator.data.get("main_type") != "Convolution2D" or operator.main.get("quanParameter"):
            return
        node, part = self._reader(operator)
        if node is None or len(operator.inputs) != 1:
            return
        tensor = node.operand(1).tensor
        found = codes_of(tensor)
        if found is None and not is_half(tensor):
            return
        self.result.widths.add(16 if found is None else found.storage.bits)
        weight, bias = self.net.floats(operator)
        rows = operator.main["common"].get("outputCount", 0)
        if found is None:
            half = weight.astype(np.float16)
            if np.array_equal(half.astype(np.float32), weight):
                self._put(operator, _HALF, partial(_half_parts, half, bias))
                shape = (rows, weight.size // max(rows, 1))
                self.result.weights[operator.name] = (node.operand(1).name, shape, Storage(bits=16))
                self.result.stored[16] += 1
            else:
                self.result.lost[operator.name] = "the converter changed its numbers"
            return
        if operator.type not in CONVOLUTIONS:
            self.result.lost[operator.name] = f"{operator.type} holds no codes"
            return
        columns = found.shape[1]
        start = part * rows
        factors = _factors(found, start, rows, weight)
        if factors is None:
            self.result.lost[operator.name] = "the converter changed its numbers"
            return
        parts = partial(_code_parts, found, start, rows, factors, bias)
        self._put(operator, _integer(found, rows, columns), parts)
        name = node.operand(1).name + (f"#{part}" if rows < found.shape[0] else "")
        self.result.weights[operator.name] = (name, (rows, columns), found.storage)
        self.result.stored[found.storage.bits] += 1
        if operator.type == "ConvolutionDepthwise" and (factors != 1).any() and self.ranges:
            self.result.floats[operator.name] = "a normalization was taken into its weights"
        elif found.storage.bits == 8 and found.storage.symmetric and found.blocks == 1:
            self.integers[id(operator)] = found
        elif found.storage.bits == 8 and self.ranges:
            why = "its weights have zeros" if found.blocks == 1 else "its weights have scales of blocks"
            self.result.floats[operator.name] = why

    def _reader(self, operator: Operator) -> tuple[Node | None, int]:
        """The node of an operator, and which group of it the operator is."""
        name, part = plain(operator.name), 0
        stem, found, number = name.rpartition("__group__")
        if found and number.isdigit():
            name, part = stem, int(number)
        return self.readers.get(name), part

    @staticmethod
    def _put(
        operator: Operator, fields: Mapping[str, int | float | bool], parts: Callable[[], tuple[np.ndarray, ...]]
    ) -> None:
        operator.fields["quanParameter"] = table("IDSTQuan", fields)
        operator.parts = parts


_HALF = {"type": 3, "quantScale": 1.0, "aMin": 0, "readType": 0, "aMaxOrBits": 16}
"""How a convolution of half floats says so."""


def _half_parts(half: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, ...]:
    return half.view(np.uint8), np.zeros(0, np.float32), bias


def _integer(weight: QuantizedWeight, rows: int, columns: int) -> Mapping[str, int | float | bool]:
    storage = weight.storage
    return {
        "type": 1, "useInt32": False, "quantScale": 1.0, "scaleIn": 0.0, "scaleOut": 0.0, "aMaxOrBits": storage.bits,
        "aMin": 0 if storage.symmetric else 1, "readType": 0 if storage.symmetric else rows * weight.blocks,
        "has_scaleInt": False, "shapeInt32": max(rows, columns) > 0xFFFF, "weightSize": 0,
    }  # fmt: skip


def _factors(weight: QuantizedWeight, start: int, rows: int, floats: np.ndarray) -> np.ndarray | None:
    """By what factor each row of the net differs from what the codes stand for, ``[rows, 1]``.

    It is 1, or that of a normalization that the converter took into the weights. None when rows differ otherwise.
    """
    count, columns = weight.shape
    if floats.size != rows * columns or start + rows > count:
        return None
    wanted, got = weight.dequantized().rows(start, start + rows), floats.reshape(rows, columns)
    factors = np.ones((rows, 1), np.float32)
    if np.array_equal(wanted, got):
        return factors
    place = np.abs(wanted).argmax(1)[:, None]
    largest = np.take_along_axis(wanted, place, 1)
    factors = np.divide(np.take_along_axis(got, place, 1), largest, out=factors, where=largest != 0)
    near = np.abs(wanted * factors - got) <= 2e-6 * np.abs(got).max(1, keepdims=True)
    return factors if near.all() and np.isfinite(factors).all() else None


def raised_parts(weight: QuantizedWeight, bias: np.ndarray, least: float) -> Callable[[], tuple[np.ndarray, ...]]:
    """Codes of 8 bits with no scale below `least`; those of rows whose scale was smaller are rounded to it."""

    def make() -> tuple[np.ndarray, ...]:
        part = weight.rows(0, weight.shape[0])
        scale = np.where(np.abs(part.scale) < least, np.copysign(np.float32(least), part.scale), part.scale)
        codes = np.rint(part.codes * (part.scale / scale)).astype(np.int8)
        head = _head(*weight.shape, 8)
        return np.concatenate([*head, pack_codes(codes, 8)]), scale.reshape(-1).astype(np.float32), bias

    return make


def _head(rows: int, columns: int, bits: int) -> list[np.ndarray]:
    """What stands in front of codes: dimensions, and the number that each code stands for before it is scaled."""
    dims = np.array([rows, columns], "<u4" if max(rows, columns) > 0xFFFF else "<u2")
    count = 1 << bits
    codebook = np.arange(-count // 2, count // 2, dtype=np.int8).view(np.uint8)
    return [np.array([2], np.uint8), dims.view(np.uint8), np.array([count % 256], np.uint8), codebook]


def _code_parts(
    weight: QuantizedWeight, start: int, rows: int, factors: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, ...]:
    columns = weight.shape[1]
    codes, alpha = quantize_pack(weight, start, start + rows)
    scaled = alpha.reshape(rows, -1) * factors
    head = _head(rows, columns, weight.storage.bits)
    return np.concatenate([*head, codes]), scaled.astype(np.float32), bias


__all__ = ["CONVOLUTIONS", "Weights", "raised_parts"]
