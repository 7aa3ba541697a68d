"""Tables of numbers of formats that are no grid of equal steps, and how their places are packed."""

from __future__ import annotations

import numpy as np

from frontends.containers.encodings.stored import exponents
from ir.base.types import U8
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.packed import bit_codes
from ir.tensor.rearranged import reshaped

_MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.int8)
FP4_DOUBLED = InlineTensor(np.concatenate([_MAGNITUDES, -_MAGNITUDES]))
"""i8[16]: twice the value of each 4-bit float E2M1 (OCP Microscaling 1.0, section 5.3.3), all of which are whole."""
HALVED = exponents(128)
"""f32[256]: half of what an exponent of 8 bits stands for, to go with the doubled values."""


def nibbles(base: Tensor) -> Tensor:
    """u4: the two numbers of each byte along the last axis, the one in the low bits first."""
    *outer, width = base.shape
    flat = reshaped(base, (int(np.prod(outer, dtype=np.int64)), width))
    return reshaped(bit_codes(flat, 4, 2 * width, unsigned=True), (*outer, 2 * width))


def flat_nibbles(base: Tensor) -> Tensor:
    """u4 vector: the two numbers of each byte of a tensor, the one in the high bits first."""
    assert base.type.dtype == U8
    size = base.type.size or 0
    return reshaped(bit_codes(reshaped(base, (size, 1)), 4, 2, order=(1, 0), unsigned=True), (2 * size,))
