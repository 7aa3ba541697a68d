"""Orthogonal matrices that need no storage, and the recipe that multiplies a weight by one of them, range by range.

``Q(n, seed) = diag(signs) (T_m kron H_p)`` with ``n = m p``, ``p`` the largest power of two in n: `H_p` is the Hadamard
matrix in Sylvester's order over ``sqrt(p)``, `T_m` the orthonormal Hartley matrix ``cas(2 pi j k / m) / sqrt(m)``
(Bracewell, "Discrete Hartley transform", 1983). Both spread one coordinate evenly over all; random signs keep what is
already spread from being gathered again, as in QuIP# (Tseng et al., 2024) and QuaRot (Ashkboos et al., 2024).

Everything is sums and products of whole vectors in double precision in a fixed order, never a matrix product of a
library, so that a number depends neither on the range it was asked in nor on threads.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from ir.base.types import TensorType
from ir.tensor.base import Derived, Tensor, refuse

GROUP_BYTES = 16 << 20
"""Double-precision bytes that rows mixed along axis 0 may take at once."""
COLUMNS = 64
"""Vectors that are transformed together: few enough to stay in the processor's cache."""


def rotation_matrix(size: int, seed: int) -> np.ndarray:
    """``Q`` as float64[size, size]; its columns are orthonormal to double precision."""
    return _turn(np.eye(size), size, seed).T


@lru_cache(maxsize=64)
def _signs(size: int, seed: int) -> np.ndarray:
    """float64[size] of +1 and -1, from a hash so that no generator's version matters."""
    raw = b"".join(
        blake2b(f"{seed} {size} {block}".encode(), digest_size=64).digest() for block in range(-(-size // 512))
    )
    bits = np.unpackbits(np.frombuffer(raw, np.uint8))[:size]
    return 1.0 - 2.0 * bits


def _factors(size: int) -> tuple[int, int]:
    """Odd part and largest power of two of a size."""
    power = size & -size
    return size // power, power


@lru_cache(maxsize=64)
def _small(odd: int, power: int) -> np.ndarray:
    """Orthonormal ``T_odd kron H_power`` as float64[odd * power, odd * power]; symmetric."""
    steps = np.outer(np.arange(odd), np.arange(odd)) % odd * (2 * np.pi / odd)
    hartley = (np.cos(steps) + np.sin(steps)) / math.sqrt(odd)
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    return np.kron(hartley, hadamard / math.sqrt(power))


def _butterflies(array: np.ndarray) -> None:
    """In place: the orthonormal Hadamard matrix times ``array[power, width]``."""
    power, width = array.shape
    half = 1
    while half < power:
        pairs = array.reshape(power // (2 * half), 2, half, width)
        first, second = pairs[:, 0], pairs[:, 1]
        difference = first - second
        np.add(first, second, out=first)
        second[...] = difference
        half *= 2
    array *= 1.0 / math.sqrt(power)


def _mixed(coefficients: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """The sum of parts times coefficients, in order."""
    total = parts[0] * coefficients[0]
    for coefficient, part in zip(coefficients[1:], parts[1:], strict=True):
        total += part * coefficient
    return total


def _turn(array: np.ndarray, size: int, seed: int) -> np.ndarray:
    """``Q^T array`` for each run of `size` rows of float64[n * size, width], as a new array."""
    odd, power = _factors(size)
    signs = _signs(size, seed)[:, None]
    out = np.empty_like(array)
    for start in range(0, len(array), size):
        block = array[start : start + size] * signs
        parts = [block[at : at + power] for at in range(0, size, power)]
        for part in parts:
            _butterflies(part)
        for index, row in enumerate(_small(odd, 1)):
            place = start + index * power
            out[place : place + power] = _mixed(row, parts)
    return out


class _Rotated(Derived):
    name = "rotated"

    def __init__(self, base: Tensor, axis: int, size: int, seed: int) -> None:
        super().__init__(TensorType(base.type.dtype, base.type.shape), base, axis, size, seed)
        self.axis, self.size, self.seed = axis, size, seed
        self._lock = threading.Lock()
        self._held: tuple[int, np.ndarray] | None = None
        odd, power = _factors(size)
        self.group = power
        while self.group > 1 and self.group * self.row_size * 8 > GROUP_BYTES:
            self.group //= 2
        self.odd, self.coarse = odd, power // self.group

    def rows(self, start: int, stop: int) -> np.ndarray:
        """A new array; along axis 0 a group of rows is kept until `release`, since each needs its block of the base."""
        self._bounds(start, stop)
        out = np.empty((stop - start, self.row_size), self.type.dtype.numpy)
        if self.axis == 1:
            self._along_rows(start, out)
            return out
        for group in range(start // self.group, -(-stop // self.group)):
            first = group * self.group
            low, high = max(start, first), min(stop, first + self.group)
            out[low - start : high - start] = self._mixed_rows(group)[low - first : high - first]
        return out

    def _along_rows(self, start: int, out: np.ndarray) -> None:
        for low in range(0, len(out), COLUMNS):
            high = min(len(out), low + COLUMNS)
            columns = np.ascontiguousarray(self.base.rows(start + low, start + high).T, np.float64)
            out[low:high] = _turn(columns, self.size, self.seed).T

    def _mixed_rows(self, group: int) -> np.ndarray:
        with self._lock:
            if self._held is None or self._held[0] != group:
                self._held = (group, self._compute(group))
            return self._held[1]

    def _compute(self, group: int) -> np.ndarray:
        """A group of rows: coefficients times the groups of the block, then the fine part of the Hadamard matrix."""
        block, place = divmod(group, self.odd * self.coarse)
        signs = _signs(self.size, self.seed)
        total = np.zeros((self.group, self.row_size))
        for index, coefficient in enumerate(_small(self.odd, self.coarse)[place]):
            inside = index * self.group
            first = block * self.size + inside
            part = self.base.rows(first, first + self.group).astype(np.float64)
            part *= (signs[inside : inside + self.group] * coefficient)[:, None]
            total += part
        _butterflies(total)
        return total.astype(self.type.dtype.numpy)

    def release(self) -> None:
        """Drop the group of rows and close what is below."""
        with self._lock:
            self._held = None
        super().release()


def rotated(base: Tensor, axis: int, size: int, seed: int) -> Tensor:
    """A float matrix times an orthogonal one: ``base @ Q`` along axis 1, ``Q.T @ base`` along axis 0.

    `Q` is block-diagonal with blocks ``rotation_matrix(size, seed)``; the size must divide the axis. Computed in double
    precision and rounded once to the type of the base. A vector is turned along axis 0.
    """
    shape = base.shape
    if len(shape) not in (1, 2) or axis not in range(len(shape)) or not base.type.dtype.is_float:
        raise refuse("rotated", f"only float matrices and vectors can be turned, along axis 0 or 1, not {axis}", base)
    if size < 1 or shape[axis] % size:
        raise refuse("rotated", f"blocks of {size} do not divide axis {axis}", base)
    if len(shape) == 1:
        from ir.tensor.rearranged import reshaped

        return reshaped(_Rotated(reshaped(base, (shape[0], 1)), 0, size, seed), shape)
    return _Rotated(base, axis, size, seed)
