"""Scales and zeros of fixed codes, moved along gradients: Adam in units of each block's own scale.

A weight is ``codes * scale + zero``. Scale and zero of a block change together with its numbers, so the scale is turned
around the middle of the block's codes: what it does then has little to do with what the zero does.
"""

from __future__ import annotations

import numpy as np

from ir.quant.form import Form, Numbers
from ir.quant.methods.base import Blocks, real_zero
from ir.quant.storage import Storage

MOMENTUM, MEMORY = 0.9, 0.95
"""How long Adam remembers gradients, and their squares."""
TINY = 1e-12


class Scales:
    """The numbers of one weight's blocks while they are tuned; float32 ``[rows, blocks]`` throughout.

    Attributes:
        codes: int8[rows, columns].
    """

    def __init__(self, blocks: Blocks, storage: Storage) -> None:
        self.codes = blocks.codes
        self._form = Form(storage)
        self._scale = np.array(blocks.scale, np.float32)
        zero = real_zero(blocks.scale, blocks.zero)
        self._zero = np.zeros_like(self._scale) if zero is None else np.array(zero, np.float32)
        self._free = self._form.kind == "float"
        if self._free:
            self._middle = self._wide(self.codes).mean(axis=2, dtype=np.float32)
        else:
            # Zero stays the same code, so that both grow alike.
            self._middle = np.float32(0) if blocks.zero is None else np.asarray(blocks.zero, np.float32)
        count = 2 if self._free else 1
        self._moves = [np.zeros_like(self._scale) for _ in range(count)]
        self._slopes = [np.zeros_like(self._scale) for _ in range(count)]
        self._mean = [np.zeros_like(self._scale) for _ in range(count)]
        self._square = [np.zeros_like(self._scale) for _ in range(count)]
        self._steps = 0

    def _wide(self, matrix: np.ndarray) -> np.ndarray:
        return matrix.reshape(*self._scale.shape, -1)

    def numbers(self) -> Numbers:
        """Scales and real zeros now, not rounded to what can be stored."""
        scale = self._scale * (1 + self._moves[0])
        if not self._free:
            return Numbers(scale, -self._middle * scale, None)
        zero = self._zero + self._scale * (self._moves[1] - self._moves[0] * self._middle)
        return Numbers(scale, zero, None)

    def rows(self) -> np.ndarray:
        """float32[rows, columns], the weight now."""
        numbers = self.numbers()
        found = self._wide(self.codes).astype(np.float32)
        found *= numbers.scale[:, :, None]
        found += numbers.zero[:, :, None]
        return found.reshape(self.codes.shape)

    def add(self, gradient: np.ndarray) -> None:
        """Count in a gradient with respect to the weight, float32[rows, columns]."""
        wide = self._wide(gradient)
        along, level = np.einsum("ijk,ijk->ij", wide, self._wide(self.codes), dtype=np.float32), wide.sum(axis=2)
        self._slopes[0] += self._scale * (along - self._middle * level)
        if self._free:
            self._slopes[1] += self._scale * level

    def step(self, rate: float) -> None:
        """Move by the gradients counted in, and forget them."""
        self._steps += 1
        first, second = 1 - MOMENTUM**self._steps, 1 - MEMORY**self._steps
        for move, slope, mean, square in zip(self._moves, self._slopes, self._mean, self._square, strict=True):
            mean += np.float32(1 - MOMENTUM) * (slope - mean)
            square += np.float32(1 - MEMORY) * (slope * slope - square)
            move -= np.float32(rate / first) * mean / (np.sqrt(square / np.float32(second)) + np.float32(TINY))
            slope[:] = 0

    def state(self) -> list[np.ndarray]:
        """How far the numbers have moved; a copy."""
        return [move.copy() for move in self._moves]

    def restore(self, state: list[np.ndarray]) -> None:
        """Go back to what `state` gave."""
        self._moves = [move.copy() for move in state]

    def blocks(self, before: Blocks) -> Blocks:
        """As it can be stored; blocks whose numbers cannot be stored keep those of `before`."""
        now = self.numbers()
        wished = self._form.project(now.scale, now.zero)
        point = None if before.zero is None or self._free else np.asarray(before.zero, np.float32)
        zero = wished.zero if point is None else -point * wished.scale
        old = Numbers(
            before.scale,
            np.asarray(real_zero(before.scale, before.zero))
            if before.zero is not None
            else np.zeros_like(before.scale),
            point,
        )
        fits = np.isfinite(wished.scale) & np.isfinite(zero) & (wished.scale != 0)
        return self._form.blocks(self.codes, old.where(fits, Numbers(wished.scale, zero, point)))


__all__ = ["Scales"]
