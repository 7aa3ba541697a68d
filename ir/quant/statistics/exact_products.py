"""Matrix products whose bits depend on nothing but the numbers: not on threads, nor on what is computed beside them.

Libraries split sums by threads, so they get one. They also treat the first and last columns of a product by other code
than those between, which rounds otherwise; how many is found by trying, and such columns are left unused.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from ir.tensor.one_thread import one_thread

TILES = ((256, 0), (256, 8), (256, 16), (256, 32), (16, 0), (1, 0))
"""Widths of a product and unused columns on either side, the first sound one of which is taken; the last always is."""
TRIED = ((1, 128), (5, 64), (31, 32), (96, 32), (128, 900), (640, 128), (900, 900))
"""Shapes of the left factor that soundness is tried with."""


class Tiles:
    """Columns of matrices that are multiplied tile by tile, so that equal columns give equal results wherever they lie.

    Attributes:
        width: columns of the matrices, unused ones included.
        places: int[count], the columns in use.
    """

    def __init__(self, count: int, *, alone: bool = False) -> None:
        """`alone` is for columns that are always computed together, which need no room beside them."""
        self._tile, guard = (max(1, count), 0) if alone else _sound_tile()
        usable = self._tile - 2 * guard
        index = np.arange(count)
        self.places = index // usable * self._tile + guard + index % usable
        self.width = -(-count // usable) * self._tile

    @staticmethod
    def capacity(width: int) -> int:
        """Columns in use of matrices of at most `width` columns, at least those of one tile."""
        tile, guard = _sound_tile()
        return max(1, width // tile) * (tile - 2 * guard)

    def product(self, left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
        """``left.T @ right`` for float32 ``left[k, m]`` and ``right[k, width]``; to be called within `one_thread`."""
        for start in range(0, self.width, self._tile):
            np.matmul(left.T, right[:, start : start + self._tile], out=out[:, start : start + self._tile])


@cache
def _sound_tile() -> tuple[int, int]:
    rng = np.random.default_rng(0)
    cases = [
        (rng.standard_normal((inner, outer), np.float32), rng.standard_normal(inner, np.float32))
        for outer, inner in TRIED
    ]
    with one_thread():
        return next((tile, guard) for tile, guard in TILES if all(_is_sound(tile, guard, *case) for case in cases))


def _is_sound(tile: int, guard: int, left: np.ndarray, column: np.ndarray) -> bool:
    """True when a column gives the same bits at all places of a tile that are used."""
    found = np.matmul(left.T, np.repeat(column[:, None], tile, axis=1))[:, guard : tile - guard]
    return bool((found == found[:, :1]).all())


__all__ = ["Tiles", "one_thread"]
