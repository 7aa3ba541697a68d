"""How a weight is stored: the one value that passes decide on, methods carry out and contracts record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ir.base.diag import LadingError

INTEGER_BITS = range(2, 9)
FLOAT_BITS = (16, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """How one weight is stored.

    Attributes:
        bits: 2 to 8 for blocked integers, 16 for half floats, 32 for single floats; nothing else matters for floats.
        block: input features that share a scale; 0 for one block per row. It must divide the row length.
        symmetric: without a zero, ``w = q * scale``; the scale may be negative.
        zero: ``int`` for an integer zero point, ``w = (q - zero) * scale``; ``float`` for the real value of code 0,
            ``w = q * scale + zero``. Ignored when symmetric.
        scale: storage of scale and real zero; with ``f16`` they are rounded to half precision before codes are chosen.
        method: how codes are chosen, key of `ir.quant.methods.base.METHODS`.
    """

    bits: int
    block: int = 0
    symmetric: bool = False
    zero: Literal["int", "float"] = "int"
    scale: Literal["f32", "f16"] = "f32"
    method: str = "rtn"

    def __post_init__(self) -> None:
        if self.bits not in (*INTEGER_BITS, *FLOAT_BITS) or self.block < 0:
            message = f"bits={self.bits} block={self.block}: bits are 2 to 8, 16 or 32, blocks not negative"
            raise LadingError("Q400", message)
        if self.zero not in ("int", "float") or self.scale not in ("f32", "f16"):
            raise LadingError("Q400", f"zero={self.zero} scale={self.scale}: zero is int or float, scale is f32 or f16")

    @property
    def words(self) -> str:
        """For people: ``4 bits, block 64, symmetric``."""
        if not self.is_integer:
            return f"{self.bits} bits"
        block = f"block {self.block}" if self.block else "one scale a row"
        return f"{self.bits} bits, {block}{', symmetric' if self.symmetric else ''}"

    @property
    def is_integer(self) -> bool:
        """True when codes with scales are stored, not floats."""
        return self.bits in INTEGER_BITS

    @property
    def low(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1

    def blocks(self, length: int) -> int:
        """Blocks in a row of `length` input features.

        Raises:
            LadingError: Q401 when the block does not divide the row.
        """
        block = self.block or max(1, length)
        if length % block:
            usable = fit_block(length, block)
            hint = f"use block={usable}" if usable else "use block=0, one scale per row"
            raise LadingError("Q401", f"block {block} does not divide the {length} input features", hint=hint)
        return length // block

    def fit(self, length: int) -> Storage:
        """The same with the largest usable block up to its own for rows of `length` input features."""
        return replace(self, block=fit_block(length, self.block))


def fit_block(length: int, wanted: int) -> int:
    """Largest usable block up to `wanted`: a multiple of 32 that divides, else 16, 8 or 4, else 0 (a whole row)."""
    for block in (*range(min(wanted, length) // 32 * 32, 0, -32), 16, 8, 4):
        if block <= wanted and length and length % block == 0:
            return block
    return 0


__all__ = ["FLOAT_BITS", "INTEGER_BITS", "Storage", "fit_block"]
