"""How numbers become 8-bit integers: scale and zero of a range, codes of a weight and of its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ir.base.types import I8, U8, DType

Activations = Literal["int8", "uint8"]

MOST_BIAS = 2**30
"""Largest code of a bias, which leaves room for the sum of products that it is added to."""


@dataclass(frozen=True)
class Scale:
    """What codes of a tensor stand for: ``(code - zero) * scale``.

    Attributes:
        scale: distance of neighbouring numbers, in single precision.
        zero: the code of 0.
        dtype: element type of the codes.
    """

    scale: float
    zero: int
    dtype: DType

    def codes(self, array: np.ndarray) -> np.ndarray:
        """The codes of an array."""
        found = np.rint(array.astype(np.float64) / self.scale) + self.zero
        return np.clip(found, self.dtype.low, self.dtype.high).astype(self.dtype.numpy)


@dataclass(frozen=True)
class Scheme:
    """How activations and weights are stored.

    Attributes:
        activations: element type of activations.
        symmetric: the zero of activations is in the middle, so that int8 codes are products of numbers alone.
        weight_bits: 8, or 7 for processors whose 8-bit products overflow in 16 bits.
        per_channel: each output channel of a weight has a scale of its own.
    """

    activations: Activations = "uint8"
    symmetric: bool = False
    weight_bits: int = 8
    per_channel: bool = True

    def of_range(self, low: float, high: float) -> Scale:
        """Scale and zero of activations within a range; the range is made to hold zero."""
        dtype = I8 if self.activations == "int8" else U8
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            middle = dtype.low + 128
            return Scale(_single(max(-low, high) / 127), middle, dtype)
        scale = _single((high - low) / 255)
        zero = int(np.clip(np.rint(dtype.low - low / scale), dtype.low, dtype.high))
        return Scale(scale, zero, dtype)

    def of_weight(self, array: np.ndarray, axis: int, operand: float, bias: np.ndarray | None) -> np.ndarray:
        """float32 scales of a weight: one for each output channel, or one element for all.

        Args:
            array: the weight.
            axis: of its output channels.
            operand: scale of the activations that it is multiplied with.
            bias: what is added to each channel; scales are widened where its code would not fit.
        """
        largest = (1 << (self.weight_bits - 1)) - 1
        rows = np.abs(np.moveaxis(array, axis, 0)).reshape(array.shape[axis], -1)
        reach = rows.max(axis=1, initial=0.0).astype(np.float64) / largest
        if bias is not None:
            reach = np.maximum(reach, np.abs(bias.reshape(-1)).astype(np.float64) / operand / MOST_BIAS)
        if not self.per_channel:
            reach = reach.max(keepdims=True)
        # A channel of zeros may have any scale.
        return np.where(reach > 0, reach, 1.0).astype(np.float32)


def _single(number: float) -> float:
    """A scale in single precision; 1 where everything is zero."""
    found = float(np.float32(number))
    return found if found > 0 else 1.0


def weight_codes(array: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """int8 codes of a weight for scales as `Scheme.of_weight` gives them."""
    shape = [1] * array.ndim
    if scales.size > 1:
        shape[axis] = scales.size
    found = np.rint(array.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    return np.clip(found, -127, 127).astype(np.int8)


def bias_codes(bias: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """int32 codes of a bias for the scales of sums of products."""
    found = np.rint(bias.reshape(-1).astype(np.float64) / scales.astype(np.float64))
    return np.clip(found, -(2**31), 2**31 - 1).astype(np.int32)


__all__ = ["Activations", "Scale", "Scheme", "bias_codes", "weight_codes"]
