"""Matrices of linear layers, and how several of them share one stored tensor.

The order of the rows of a fused tensor is a word: ``q|k|v`` are blocks one after another, ``g:q|k|v`` the same in each
of a number of equal groups, so that every group has its share of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ir.tensor.base import Tensor
from ir.tensor.rearranged import row_gather


@dataclass(frozen=True)
class Matrix:
    """A linear layer's numbers.

    Attributes:
        module: name of the module; for a part of a fused one the name it would have by itself.
        weight: float32[out, in].
        bias: float32[out], or None.
    """

    module: str
    weight: Tensor
    bias: Tensor | None = None

    def gather(self, rows: np.ndarray) -> Matrix:
        """The same with other output elements, each a row of this one."""
        bias = None if self.bias is None else row_gather(self.bias, rows)
        return replace(self, weight=row_gather(self.weight, rows), bias=bias)

    def called(self, module: str) -> Matrix:
        """The same as a module of another name."""
        return replace(self, module=module)


def split(fused: Matrix, order: str, widths: Mapping[str, int], groups: int = 1) -> dict[str, Matrix]:
    """The parts of a fused matrix by their names in its order; see `split_rows`."""
    return {name: fused.gather(rows) for name, rows in split_rows(order, widths, groups).items()}


def split_rows(order: str, widths: Mapping[str, int], groups: int = 1) -> dict[str, np.ndarray]:
    """Which rows of a fused tensor belong to each part.

    Args:
        order: such as ``q|k|v`` or ``g:q|k|v``; every name a key of `widths`.
        widths: rows of each part in all groups together.
        groups: number of groups of the second form.
    """
    grouped, names = order.startswith("g:"), order.removeprefix("g:").split("|")
    count = groups if grouped else 1
    found, at = {}, 0
    stride = sum(widths[name] for name in names) // count
    for name in names:
        share = widths[name] // count
        found[name] = (np.arange(count)[:, None] * stride + np.arange(at, at + share)).reshape(-1)
        at += share
    return found


def halves_of_pairs(turned: int, width: int) -> np.ndarray:
    """Order of the elements of one head that makes the halves of neighbours: even ones, odd ones, the rest."""
    turning = np.arange(turned)
    return np.concatenate([turning[::2], turning[1::2], np.arange(turned, width)])


def for_heads(order: np.ndarray, heads: int) -> np.ndarray:
    """The order of one head, repeated for all heads of a projection."""
    return (np.arange(heads)[:, None] * len(order) + order).reshape(-1)


__all__ = ["Matrix", "for_heads", "halves_of_pairs", "split", "split_rows"]
