"""Lazy tensors: type and place are free, bytes are read in row ranges, derived tensors are recipes over others.

A checkpoint is larger than memory, so nothing above this module asks for a whole weight: it asks for rows. Every tensor
can say how it was made (`Tensor.recipe`), which is how graphs are printed, parsed, compared and sent to workers.

This is where everybody imports from; the parts are in `ir.lazy` (what a tensor is), `ir.inline` and `ir.files` (where
numbers lie), `ir.rows`, `ir.elementwise` and `ir.rotation` (recipes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ir.elementwise import cast, convert, multiplied, scaled, shifted, widen_halves
from ir.files import FILES, Files, FileTensor, find_source
from ir.inline import InlineTensor, array_of, bytes_of
from ir.lazy import PIECE_BYTES, RECIPES, Derived, Tensor, register_recipe, same_tensor
from ir.rotation import rotated, rotation_matrix
from ir.rows import reshaped, row_concat, row_gather, row_permute, row_slice, transposed


def _from_quant(name: str) -> Callable[..., Tensor]:
    def build(*args: Any, **kwargs: Any) -> Tensor:
        from ir import quant

        return getattr(quant, name)(*args, **kwargs)

    return build


def _stored_codes(*args: Any, **kwargs: Any) -> Tensor:
    from ir.packed import stored_codes

    return stored_codes(*args, **kwargs)


register_recipe("stored_codes", _stored_codes)
for _part in ("codes", "scale", "zero_point", "dequantized"):
    register_recipe(f"quantized_{_part}", _from_quant(f"rebuild_{_part}"))

__all__ = [
    "FILES",
    "PIECE_BYTES",
    "RECIPES",
    "Derived",
    "FileTensor",
    "Files",
    "InlineTensor",
    "Tensor",
    "array_of",
    "bytes_of",
    "cast",
    "convert",
    "find_source",
    "multiplied",
    "register_recipe",
    "reshaped",
    "rotated",
    "rotation_matrix",
    "row_concat",
    "row_gather",
    "row_permute",
    "row_slice",
    "same_tensor",
    "scaled",
    "shifted",
    "transposed",
    "widen_halves",
]
