"""How many bytes MNN's weight file takes, known from shapes and storages alone, before anything is quantized.

A matrix is a header (2 bytes, dimensions of 2 or 4 bytes each, a table of every code), the codes as one bit stream, and
a scale or a (zero, scale) pair for each block; see ``source/core/ConvolutionCommon.cpp``. A bias lies behind each
matrix, and gain and shift of each norm layer are stored as float32.
"""

from __future__ import annotations

from ir.base.types import TensorType
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.quant.storage_size import scale_bytes
from ir.quant.stored_weight import is_weight

NORMS = ("RMSNormalization", "LayerNormalization")


def weight_bytes(rows: int, columns: int, storage: Storage) -> int:
    """Bytes of a matrix in the weight file: header, codes, scales and zeros; without the bias behind it."""
    if storage.bits > 8:
        return rows * columns * storage.bits // 8
    header = 2 + (8 if max(rows, columns) > 0xFFFF else 4) + (1 << storage.bits)
    return header + (rows * columns * storage.bits + 7) // 8 + scale_bytes(rows, columns, storage)


def exact_rows_bytes(rows: int, columns: int, parts: int) -> int:
    """Bytes of embedding rows kept exactly as `parts` bfloat16 numbers each; they lie in a file of their own."""
    return 2 * rows * columns * parts


def fixed_bytes(graph: Graph) -> int:
    """Bytes of the weight file that no storage changes: a bias for each product with a weight, and the norms.

    What came quantized is kept, other weights are constants still; a product without a bias is stored with one of
    zeros.
    """
    from passes.precision.planned_weights import kept_weights

    total = sum(weight_bytes(item.rows, item.columns, item.storage) for item in kept_weights(graph))
    for node in graph.nodes:
        weight = node.input(1)
        if node.op == "MatMul" and weight is not None and is_weight(weight):
            total += 4 * weight.sizes[-1]
        elif node.op in NORMS and weight is not None and isinstance(weight.type, TensorType):
            total += 8 * (weight.type.size or 0)
    return total


__all__ = ["exact_rows_bytes", "fixed_bytes", "weight_bytes"]
