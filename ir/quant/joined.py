"""Quantized weights whose rows lie one below the other, as one weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cached_property
from typing import Any

import numpy as np

from ir.quant.methods.base import Blocks
from ir.quant.weight import QuantizedWeight, quantized_of
from ir.tensor.base import Tensor
from ir.tensor.rearranged import row_concat


class JoinedWeight(QuantizedWeight):
    """Rows of several weights of one storage and row length, each quantized by itself: the numbers are those of the parts.

    Attributes:
        parts: the weights, from the first row on.
    """

    def __init__(self, parts: Sequence[QuantizedWeight]) -> None:
        self.parts = tuple(parts)
        super().__init__(row_concat([part.source for part in parts]), parts[0].storage, parts[0].moments)
        self._starts = np.cumsum([0, *(part.shape[0] for part in parts)])

    def __reduce__(self) -> tuple[Any, ...]:
        return JoinedWeight, (self.parts,)

    @cached_property
    def codes(self) -> Tensor:
        """i{bits}[out, in]."""
        return row_concat([part.codes for part in self.parts])

    @cached_property
    def scale(self) -> Tensor:
        """f32[out, blocks]."""
        return row_concat([part.scale for part in self.parts])

    @cached_property
    def zero_point(self) -> Tensor | None:
        """The zeros of the parts; None when symmetric."""
        zeros = [part.zero_point for part in self.parts]
        return None if self.storage.symmetric else row_concat([zero for zero in zeros if zero is not None])

    def dequantized(self) -> Tensor:
        """f32[out, in]."""
        return row_concat([part.dequantized() for part in self.parts])

    @property
    def is_slow(self) -> bool:
        """True when a part is."""
        return any(part.is_slow for part in self.parts)

    def keep(self, executor: Executor) -> None:
        """As `QuantizedWeight.keep`, for each part."""
        for part in self.parts:
            part.keep(executor)

    def slow_parts(self) -> list[QuantizedWeight]:
        """As `QuantizedWeight.slow_parts`, of all parts."""
        return [weight for part in self.parts for weight in part.slow_parts()]

    def _reader(self) -> Callable[[int, int], Blocks]:
        readers = [part._reader() for part in self.parts]

        def read(start: int, stop: int) -> Blocks:
            found = []
            for reader, part, first in zip(readers, self.parts, self._starts, strict=False):
                low, high = max(start - int(first), 0), min(stop - int(first), part.shape[0])
                if low < high:
                    found.append(reader(low, high) if high - low == stop - start else part.rows(low, high))
            return found[0] if len(found) == 1 else Blocks.below(found)

        return read

    def quantize_rows(self, rows: np.ndarray, places: Sequence[int] | np.ndarray) -> Blocks:
        """Not possible: rows are quantized by the parts."""
        raise TypeError("rows of joined weights are quantized by their parts")


def joined_of(tensors: Sequence[Tensor]) -> JoinedWeight | None:
    """The weight of which the tensors are codes, scales and zeros, each those of several weights one below the other; None
    for others."""
    found = [_parts(tensor) for tensor in tensors]
    first = found[0] if found else None
    if first is None or any(parts != first for parts in found):
        return None
    return JoinedWeight(first) if len({part.storage for part in first}) == 1 else None


def _parts(tensor: Tensor) -> list[QuantizedWeight] | None:
    name, inputs, _ = tensor.recipe()
    parts = [quantized_of(item) for item in inputs] if name == "row_concat" else []
    known = [part for part in parts if part is not None]
    return known if known and len(known) == len(parts) else None


__all__ = ["JoinedWeight", "joined_of"]
