"""MXFP4 as gpt-oss stores it: stacks of expert matrices in 4-bit floats, 32 of which share an exponent.

``X_blocks: u8[experts, out, blocks, 16]`` and ``X_scales: u8[experts, out, blocks]`` stand for ``X: [experts, in, out]``,
the plain name with inputs and outputs the other way round. Values are 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives
times a power of two, so that twice the value is a small integer.

Format: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 and 5.4.1.
"""

from __future__ import annotations

from collections.abc import Iterable

from frontends.containers.encodings.stored import Encoding, Found, Stored
from frontends.containers.encodings.tables import FP4_DOUBLED, HALVED, nibbles
from ir.base.types import U8
from ir.quant.coded import decoded
from ir.tensor.packed import looked_up
from ir.tensor.rearranged import reshaped, swapped, transposed

BLOCK = 32


def find(stored: Stored) -> Iterable[Found]:
    """Pairs of ``_blocks`` and ``_scales``."""
    for name, blocks in stored.ending("_blocks"):
        if blocks.type.dtype != U8 or (blocks.type.rank or 0) not in (3, 4):
            continue
        both = (f"{name}_blocks", f"{name}_scales")
        scales = stored.need(both[1], name)
        *outer, count, width = blocks.shape
        if scales.type.dtype != U8 or scales.shape != (*outer, count) or width * 2 != BLOCK:
            raise stored.misfit("blocks of 16 bytes have one exponent each", *both)
        rows = nibbles(reshaped(blocks, (*outer, count * width)))
        numbers = decoded(looked_up(rows, FP4_DOUBLED), looked_up(scales, HALVED), tile=(*(1 for _ in outer), BLOCK))
        plain = swapped(numbers) if len(outer) == 2 else transposed(numbers)
        yield Found(name, plain, both, f"MXFP4, blocks of {BLOCK}")


MXFP4 = Encoding("MXFP4", ("mxfp4",), find)
"""The row of the table."""
