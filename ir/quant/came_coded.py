"""Decoded weights of a checkpoint seen as codes again, through what a frontend does to a matrix.

A constant that a frontend makes of a stored matrix is a recipe: the decoded numbers (`ir.quant.coded.decoded`, or
`ir.quant.ggml_blocks`) of some codes, with rows cut out, picked or put below each other, and transposed. Every one of
these steps moves whole rows of codes with their scales and zeros, so that the constant can be said in codes as well,
without a number read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ir.base.types import F32
from ir.quant.coded import Coded, Parts, decoded_parts, in_tiles, repeated
from ir.quant.ggml_blocks import GgmlBlocks
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.rearranged import reshaped, row_concat, row_gather, row_slice, swapped, transposed

SCATTERED = "weights that share a scale do not lie side by side in a row (activation order)"

UNEQUAL = "its codes are places in a table of unequal steps"


@dataclass(frozen=True)
class _Tiled:
    """Codes of any rank, with the scales and zeros of tiles."""

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    tile: tuple[int, ...]
    affine: bool

    def each(
        self, tile: tuple[int, ...], change: Callable[[Tensor], Tensor], numbers: Callable[[Tensor], Tensor]
    ) -> _Tiled:
        """With codes and numbers of tiles changed."""
        zero = None if self.zero is None else numbers(self.zero)
        return _Tiled(change(self.codes), numbers(self.scale), zero, tile, self.affine)

    def by_rows(self) -> _Tiled | None:
        """With scales and zeros for every row; None where several but not all rows share one."""
        if self.tile[0] == 1:
            return self
        rows = self.codes.row_count
        if self.scale.row_count != 1:
            return None
        return self.each((1, *self.tile[1:]), lambda codes: codes, lambda part: repeated(part, 0, rows, rows))


def came_coded(tensor: Tensor) -> Coded | str | None:
    """A float tensor as the codes that it is decoded from; why they have no such form; None where it was floats.

    Nothing is read but the order of groups, where a matrix has one.
    """
    found = _seen(tensor)
    if isinstance(found, _Tiled):
        given = Parts(found.codes, cast(found.scale, F32), found.zero)
        return in_tiles(given, found.tile, found.affine)
    return found


def _seen(tensor: Tensor) -> _Tiled | str | None:
    name, args, _ = tensor.recipe()
    if name == "decoded":
        found = _Tiled(*decoded_parts(tensor))
        kind = found.codes.type.dtype
        return UNEQUAL if kind.is_float and kind.bits > 8 else _in_order(found)
    if isinstance(tensor, GgmlBlocks):
        codes, scale, zero = tensor.parts()
        return _Tiled(codes, scale, zero, (1, tensor.kind.group), zero is not None)
    if name == "row_concat":
        return _joined([_seen(part) for part in args])
    if name == "cast" and tensor.type.dtype != F32:
        return None
    step = _STEPS.get(name)
    below = _seen(tensor.inputs[0]) if step is not None else None
    return step(tensor, below) if step is not None and isinstance(below, _Tiled) else below


def _in_order(found: _Tiled) -> _Tiled | str:
    """Scales picked for every column as those of blocks, where each group lies in one run of the row."""
    name, args, _ = found.scale.recipe()
    if name != "column_gather":
        return found
    base, index = args
    columns, groups = found.codes.row_size, base.row_size
    places = index.load()
    if columns % groups or not np.array_equal(places, np.arange(columns) // (columns // groups)):
        return SCATTERED
    zero = None if found.zero is None else found.zero.inputs[0]
    return replace(found, scale=base, zero=zero, tile=(1, columns // groups))


def _transposed(_: Tensor, found: _Tiled) -> _Tiled:
    return found.each(found.tile[::-1], transposed, transposed)


def _swapped(_: Tensor, found: _Tiled) -> _Tiled:
    first, rows, columns = found.tile
    return found.each((first, columns, rows), swapped, swapped)


def _sliced(tensor: Tensor, found: _Tiled) -> _Tiled | str | None:
    _, (_, low, high), _ = tensor.recipe()
    tall, rows = found.tile[0], high - low

    def codes(part: Tensor) -> Tensor:
        return row_slice(part, low, high)

    if found.scale.row_count == 1:
        return found.each((rows, *found.tile[1:]), codes, lambda part: part)
    if low % tall:
        return "rows are cut out within a block"
    return found.each(found.tile, codes, lambda part: row_slice(part, low // tall, -(-high // tall)))


def _gathered(tensor: Tensor, found: _Tiled) -> _Tiled | str | None:
    index = tensor.recipe()[1][1]
    rows = found.by_rows()
    if rows is None:
        return "rows are picked that share scales with others"
    return rows.each(rows.tile, lambda part: row_gather(part, index), lambda part: row_gather(part, index))


def _reshaped(tensor: Tensor, found: _Tiled) -> _Tiled | str | None:
    old, new = found.codes.shape, tensor.shape
    if old[:1] == (1,) and new == old[1:]:
        shape, tile = found.scale.shape[1:], found.tile[1:]
    elif new[:1] == (1,) and new[1:] == old:
        shape, tile = (1, *found.scale.shape), (1, *found.tile)
    elif len(new) == 2 and found.tile[0] == 1 and new[1] == old[-1] and len(old) == 3 and found.tile[1] == 1:
        shape, tile = (new[0], found.scale.shape[-1]), found.tile[1:]
    else:
        return "its numbers are used in another shape"
    return found.each(tile, lambda part: reshaped(part, new), lambda part: reshaped(part, shape))


def _joined(parts: list[_Tiled | str | None]) -> _Tiled | str | None:
    reason = next((part for part in parts if isinstance(part, str)), None)
    whole = [part for part in parts if isinstance(part, _Tiled)]
    if len(whole) < len(parts):
        return reason or ("it is joined of weights in codes and others" if whole else None)
    rows = [part.by_rows() for part in whole]
    same = {(part.tile, part.affine, part.zero is None, part.codes.type.dtype) for part in rows if part is not None}
    if len(same) != 1 or None in rows:
        return "it is joined of weights that are stored in different ways"
    first = rows[0]
    assert first is not None
    given = [part for part in rows if part is not None]
    zero = None if first.zero is None else row_concat([part.zero for part in given if part.zero is not None])
    scale = row_concat([cast(part.scale, F32) for part in given])
    return _Tiled(row_concat([part.codes for part in given]), scale, zero, first.tile, first.affine)


_STEPS: dict[str, Callable[[Tensor, _Tiled], _Tiled | str | None]] = {
    "transposed": _transposed,
    "swapped": _swapped,
    "row_slice": _sliced,
    "row_gather": _gathered,
    "reshaped": _reshaped,
    "cast": lambda _, found: found,
}
"""What each recipe makes of codes."""

__all__ = ["SCATTERED", "UNEQUAL", "came_coded"]
