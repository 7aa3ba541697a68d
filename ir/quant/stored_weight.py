"""How a value that stands for a weight is stored: the one place that reads weights back out of the graph.

A weight is a constant, or constants under one ``DequantizeLinear``, ``lading.AffineDequantize`` or ``Cast``. Matrices
multiplied from the right are held in MatMul orientation ``[in, out]``; `StoredWeight` always speaks of output-major
rows ``[out, in]``, which is how checkpoints and runtimes store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ir.base.types import BF16, F16, F32
from ir.quant.weight import QuantizedWeight, quantized_of
from ir.tensor.base import Tensor
from ir.tensor.rearranged import transposed

if TYPE_CHECKING:
    from ir.graph.graph import Value

DEQUANTIZE = ("DequantizeLinear", "lading.AffineDequantize")


@dataclass(frozen=True)
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

    @property
    def bits(self) -> int:
        """Width of one stored number."""
        if self.quantized is not None:
            return self.quantized.spec.bits
        return self.source.type.dtype.bits  # type: ignore[union-attr]

    @property
    def block(self) -> int:
        """Input features that share a scale; the row length when a row has one scale; 0 for float storage."""
        if self.quantized is None:
            return 0
        return self.quantized.spec.block or self.columns

    def dequantized_rows(self, start: int, stop: int) -> np.ndarray:
        """float32[stop - start, columns] as the runtime sees it."""
        if self.quantized is not None:
            return self.quantized.dequantized().rows(start, stop)
        return self.source.rows(start, stop).astype(np.float32)  # type: ignore[union-attr]


def storage_of(value: Value, *, matmul: bool = False) -> StoredWeight:
    """How a weight value is stored.

    Args:
        value: a constant, or the output of a dequantization or Cast of constants; rank 2.
        matmul: True when the value is the right operand of a MatMul or convolution, ``[in, out]``.

    Raises:
        ValueError: the value is not a weight.
    """
    if value.const is not None:
        return _float_storage(value.name, value.const, matmul)
    node = value.producer
    if node is not None and node.op == "Cast" and node.inputs[0] is not None and node.inputs[0].const is not None:
        return _float_storage(value.name, node.inputs[0].const, matmul)
    if node is not None and node.op in DEQUANTIZE and node.inputs[0] is not None and node.inputs[0].const is not None:
        codes = node.inputs[0].const
        quantized = quantized_of(transposed(codes) if matmul else codes)
        if quantized is not None:
            rows, columns = quantized.source.type.shape
            return StoredWeight(value.name, rows, columns, None, quantized)
    raise ValueError(f"%{value.name} is not a stored weight")


def is_weight(value: Value) -> bool:
    """True when `storage_of` understands the value in one of the two orientations."""
    for matmul in (False, True):
        try:
            storage_of(value, matmul=matmul)
        except ValueError:
            continue
        return True
    return False


def _float_storage(name: str, tensor: Tensor, matmul: bool) -> StoredWeight:
    oriented = transposed(tensor) if matmul else tensor
    if oriented.type.rank != 2 or oriented.type.dtype not in (F32, F16, BF16):
        raise ValueError(f"@{name} is {tensor.type}, not a float matrix")
    rows, columns = oriented.type.shape
    return StoredWeight(name, rows, columns, oriented)
