"""Embedding rows that a model keeps in its weight file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.mnn.dialect.linear import U8, read_matrix
from backends.mnn.read.stored_tensors import WeightFile
from ir.base.diag import LadingError
from ir.base.types import F16, F32, TensorType
from ir.quant.stored_codes import stored_codes, stored_weight
from ir.quant.weight import QuantizedWeight
from ir.tensor.base import Tensor


def embedding_matrix(
    weights: WeightFile, place: list[int], rows: int, columns: int, half: bool, layer: Mapping[str, Any]
) -> Tensor | QuantizedWeight:
    """Embedding rows inside the weight file; the logits layer's own matrix when they are its codes.

    Args:
        weights: the weight file.
        place: offset of codes, offset and size of scales, bits and block, as ``tie_embeddings`` says.
        rows, columns: vocabulary and width of a row.
        half: scales are half floats.
        layer: the operator that computes the logits, or empty.

    Raises:
        LadingError: F642 beyond the file, F643 sizes that do not fit.
    """
    offset, alpha_offset, alpha_bytes, bits, _ = place
    if layer:
        own, _ = read_matrix(weights, layer)
        codes = getattr(own.source, "codes", None) if isinstance(own, QuantizedWeight) else own
        if getattr(codes, "offset", None) == offset:
            return own
    if bits == 16:
        return weights.tensor(offset, TensorType(F16, (rows, columns)), "embedding")
    size = 2 if half else 4
    count = alpha_bytes // size // max(rows, 1)
    blocks = columns // place[4] if place[4] else 1
    if count not in (blocks, 2 * blocks) or not rows:
        raise LadingError("F643", f"{alpha_bytes} bytes of scales do not fit {rows} embedding rows of {columns}")
    kind = TensorType(F16 if half else F32, (rows, blocks, 2) if count == 2 * blocks else (rows, blocks))
    codes = weights.tensor(offset, TensorType(U8, ((rows * columns * bits + 7) // 8,)), "embedding.codes")
    alpha = weights.tensor(alpha_offset, kind, "embedding.alpha")
    return stored_weight(stored_codes(codes, alpha, rows, columns, bits), weights.scale)
