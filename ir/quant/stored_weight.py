"""How a value that stands for a weight is stored: the one place that reads weights back out of the graph.

A weight is a constant, or constants under one ``DequantizeLinear``, ``lading.AffineDequantize`` or ``Cast``, whoever put
them there. Matrices multiplied from the right are held in MatMul orientation ``[in, out]``; `StoredWeight` always speaks
of output-major rows ``[out, in]``, which is how checkpoints and runtimes store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ir.base.types import BF16, F16, F32
from ir.quant.coded import decoded_from
from ir.quant.joined import joined_of
from ir.quant.storage import Storage
from ir.quant.stored_codes import given_codes, stored_weight
from ir.quant.weight import QuantizedWeight, quantized_of
from ir.tensor.base import Tensor
from ir.tensor.rearranged import transposed

if TYPE_CHECKING:
    from ir.graph.graph import Node, Value

DEQUANTIZE = ("DequantizeLinear", "lading.AffineDequantize")
FLOATS = (F32, F16, BF16)


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """A matrix of `rows` output-major rows with `columns` input features and how its numbers are kept.

    Attributes:
        name: name of the value in the graph, which is the checkpoint's key.
        source: float tensor ``[rows, columns]`` (f32, f16 or bf16) when not block-quantized, else None.
        quantized: the shared quantization recipe, or None.
    """

    name: str
    rows: int
    columns: int
    source: Tensor | None = None
    quantized: QuantizedWeight | None = None

    @cached_property
    def storage(self) -> Storage:
        """How its numbers are kept; bfloat16 counts as 16 bits."""
        if self.quantized is not None:
            return self.quantized.storage
        return Storage(bits=self.floats.type.dtype.bits)

    @property
    def floats(self) -> Tensor:
        """The float matrix; ValueError when the weight is block-quantized."""
        if self.source is None:
            raise ValueError(f"{self.name} is kept in codes")
        return self.source

    @property
    def came_in(self) -> int | None:
        """Bits of the codes that the weight came in, where it was decoded to be stored anew."""
        codes = decoded_from(self.quantized.source if self.quantized is not None else self.floats)
        return codes.type.dtype.bits if codes is not None else None

    @property
    def bits(self) -> int:
        """Width of one stored number."""
        return self.storage.bits

    @property
    def block(self) -> int:
        """Input features that share a scale; the row length when a row has one scale; 0 for float storage."""
        return (self.storage.block or self.columns) if self.storage.is_integer else 0

    def dequantized_rows(self, start: int, stop: int) -> np.ndarray:
        """float32[stop - start, columns] as the runtime sees it."""
        if self.quantized is not None:
            return self.quantized.dequantized().rows(start, stop)
        return self.floats.rows(start, stop).astype(np.float32)


def storage_of(value: Value, *, matmul: bool = False) -> StoredWeight | None:
    """How a weight value is stored; None when it is no weight, of which `obstacle` gives the reason.

    Args:
        value: a constant, or the output of a dequantization or Cast of constants; rank 2.
        matmul: True when the value is the right operand of a MatMul or convolution, ``[in, out]``.
    """
    found = _read(value, matmul)
    return found if isinstance(found, StoredWeight) else None


def is_weight(value: Value) -> bool:
    """True when `storage_of` understands the value in one of the two orientations."""
    return any(storage_of(value, matmul=matmul) is not None for matmul in (False, True))


def obstacle(value: Value, *, matmul: bool = False) -> str:
    """Why `storage_of` does not take a value for a weight; empty when it does."""
    found = _read(value, matmul)
    return found if isinstance(found, str) else ""


def _read(value: Value, matmul: bool) -> StoredWeight | str:
    """The weight, or what keeps the value from being one."""
    if value.const is not None:
        return _floats(value.name, value.const, matmul)
    node = value.producer
    source = node.input(0) if node is not None else None
    if node is None or source is None or source.const is None or node.op not in ("Cast", *DEQUANTIZE):
        return "it is computed from other values"
    if node.op == "Cast":
        return _floats(value.name, source.const, matmul)
    if any(item is not None and item.const is None for item in node.inputs):
        return "its scales or zeros are computed from other values"
    quantized = _own(node, matmul) or _given(node, matmul)
    if isinstance(quantized, str):
        return quantized
    rows, columns = quantized.shape
    return StoredWeight(name=value.name, rows=rows, columns=columns, quantized=quantized)


def _floats(name: str, tensor: Tensor, matmul: bool) -> StoredWeight | str:
    if tensor.type.rank != 2 or tensor.type.dtype not in FLOATS:
        return f"{tensor.type} is no float matrix"
    oriented = transposed(tensor) if matmul else tensor
    return StoredWeight(name=name, rows=oriented.row_count, columns=oriented.row_size, source=oriented)


def _constants(node: Node) -> list[Tensor]:
    return [item.const for item in node.inputs if item is not None and item.const is not None]


def _oriented(tensor: Tensor, matmul: bool) -> Tensor:
    return transposed(tensor) if matmul and tensor.type.rank == 2 else tensor


def _own(node: Node, matmul: bool) -> QuantizedWeight | None:
    """The recipe of which all constants of a dequantization are parts, or the recipes, one below the other."""
    parts = [_oriented(tensor, matmul) for tensor in _constants(node)]
    found = [quantized_of(tensor) for tensor in parts]
    if found[0] is None:
        return joined_of(parts)
    return found[0] if all(item is found[0] for item in found) else None


def _given(node: Node, matmul: bool) -> QuantizedWeight | str:
    """The constants of a dequantization that somebody else made as a quantized weight, or why they are none."""
    codes, scale, *rest = _constants(node)
    if codes.type.rank != 2 or not codes.type.dtype.is_integer or codes.type.dtype.bits > 8:
        return f"codes of type {codes.type} are no matrix of integers of at most 8 bits"
    if scale.type.dtype not in FLOATS:
        return f"scales are {scale.type.dtype}, not f32, f16 or bf16"
    if rest and rest[0].type.shape != scale.type.shape:
        return f"zeros of type {rest[0].type} do not fit scales of type {scale.type}"
    if node.op == "DequantizeLinear":
        if rest and rest[0].type.dtype != codes.type.dtype:
            return f"zeros are {rest[0].type.dtype} and codes are {codes.type.dtype}"
    elif codes.type.dtype.kind != "i" or rest[0].type.dtype != F32:
        return f"real zeros are f32 beside signed codes, not {rest[0].type.dtype} beside {codes.type.dtype}"
    unfit = _unfit_scales(node, codes, scale, 0 if matmul else 1)
    return unfit or stored_weight(given_codes(*(_oriented(item, matmul) for item in (codes, scale, *rest))))


def _unfit_scales(node: Node, codes: Tensor, scale: Tensor, features: int) -> str:
    """Why scales are none of the rows of a matrix whose axis `features` is that of the input features, or empty."""
    shape, given = codes.shape, scale.shape
    if given in ((), (1,)):
        return ""
    axis, block = node.attrs.get("axis", 1) % 2, node.attrs.get("block_size", 0)
    rows, columns = shape[1 - features], shape[features]
    if len(given) == 1:
        if axis == features:
            return f"it has a scale for each of {columns} input features, not for rows or blocks of a row"
        return "" if given == (rows,) else f"{given[0]} scales are not those of {rows} rows"
    if not block or axis != features:
        return "scales are shared by weights of several rows, not by blocks of a row"
    if columns % block:
        return f"blocks of {block} do not divide the {columns} input features"
    wanted = (columns // block, rows) if features == 0 else (rows, columns // block)
    return "" if given == wanted else f"scales of type {scale.type} are not those of blocks of {block}"


__all__ = ["DEQUANTIZE", "StoredWeight", "is_weight", "obstacle", "storage_of"]
