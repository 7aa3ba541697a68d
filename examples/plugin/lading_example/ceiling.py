"""A quantization method: one scale a block, such that the largest weight becomes the largest code."""

from __future__ import annotations

import numpy as np

from ir.base.types import F32
from ir.quant.spec import Blocks, NotFinite, QuantMethod, QuantSpec, Scratch
from ir.quant.statistics.moments import Moments


class Ceiling(QuantMethod):
    """Round to nearest without zero points, whatever was asked for."""

    name = "ceiling"
    accepts = frozenset({F32})
    needs = "nothing"

    def quantize(self, rows: np.ndarray, spec: QuantSpec, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise NotFinite(int(bad[0]))
        blocks = rows.reshape(len(rows), spec.blocks(rows.shape[1]), -1)
        scale = np.abs(blocks).max(axis=2) / np.float32(spec.high)
        codes = np.rint(blocks / np.where(scale, scale, 1)[:, :, None]).astype(np.int8)
        zero = None if spec.symmetric else np.zeros(scale.shape, np.int8 if spec.zero == "int" else np.float32)
        return Blocks(codes.reshape(rows.shape), scale.astype(np.float32), zero)


METHOD = Ceiling()
