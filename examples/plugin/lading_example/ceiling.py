"""A quantization method: one scale a block, such that the largest weight becomes the largest code."""

from __future__ import annotations

import numpy as np

from ir.base.types import F32
from ir.quant.methods.base import Blocks, NotFinite, QuantMethod, Scratch
from ir.quant.statistics.moments import Moments
from ir.quant.storage import Storage


class Ceiling(QuantMethod):
    """Round to nearest without zero points, whatever was asked for."""

    name = "ceiling"
    accepts = frozenset({F32})
    needs = "nothing"

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise NotFinite(int(bad[0]))
        blocks = rows.reshape(len(rows), storage.blocks(rows.shape[1]), -1)
        scale = np.abs(blocks).max(axis=2) / np.float32(storage.high)
        codes = np.rint(blocks / np.where(scale, scale, 1)[:, :, None]).astype(np.int8)
        zero = None if storage.symmetric else np.zeros(scale.shape, np.int8 if storage.zero == "int" else np.float32)
        return Blocks(codes.reshape(rows.shape), scale.astype(np.float32), zero)


METHOD = Ceiling()
