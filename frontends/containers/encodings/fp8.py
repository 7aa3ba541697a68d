"""FP8: 8-bit floats with scales for blocks of 128 by 128, rows or the whole, whatever the scales are called.

The stored scale is multiplied by, also where its name ends in ``_inv``. Scales of activations, which some checkpoints
hold beside those of weights, are not needed: activations are rounded, if at all, by scales of the runtime's own.

Formats: OCP 8-bit Floating Point Specification, revision 1.0; ``weight_scale_inv`` as in the DeepSeek-V3 repository.
"""

from __future__ import annotations

from collections.abc import Iterable

from frontends.containers.encodings.stored import FLOAT8, SCALES, Encoding, Found, Stored, in_blocks, tile_of
from frontends.containers.encodings.tables import FP4_DOUBLED, HALVED, nibbles
from ir.base.types import F32
from ir.quant.coded import decoded
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.packed import looked_up

BLOCK = (128, 128)
"""Blocks where nothing says otherwise."""
WEIGHT = ".weight"
NUMBERS = ("_scale", "_scale_inv", "_zero_point", ".scale")
"""Endings of names of scales and zeros, some of which are 8-bit floats themselves."""


def find(stored: Stored) -> Iterable[Found]:
    """Tensors of 8-bit floats, and packed 4-bit floats beside a ``_scale_inv`` in such a checkpoint."""
    block = _block(stored)
    wide = [name for name, tensor in stored.tensors.items() if tensor.type.dtype.name in FLOAT8]
    for name, tensor in stored.tensors.items():
        kind = tensor.type.dtype.name
        if kind not in FLOAT8 and not (kind == "i8" and f"{name}_scale_inv" in stored.tensors):
            continue
        if (tensor.type.rank or 0) < 2 or name.endswith(NUMBERS):
            continue
        scale = _scale_of(stored, name)
        made_of = (name, *((scale,) if scale else ()))
        if scale is None and (stored.declared.record or any(_scale_of(stored, other) for other in wide)):
            raise stored.misfit("the scales are missing", name)
        if kind == "i8":
            yield Found(name, _fp4(stored, name, scale), made_of, "FP4 in blocks")
        elif scale is None:
            yield Found(name, cast(tensor, F32), made_of, "FP8 without scales")
        else:
            numbers = in_blocks(stored, tensor, (scale,), block)
            yield Found(name, numbers, made_of, _words(stored, tensor, scale, block))


def _block(stored: Stored) -> tuple[int, ...]:
    """Size of blocks that the configuration states, or the usual one."""
    record = stored.declared.record
    given = record.get("weight_block_size")
    if given is None:
        return BLOCK
    sizes = tuple(given) if isinstance(given, list) else ()
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise stored.contradicts(f"weight_block_size {repr(given)[:40]}", "a block has two sizes")
    return sizes


def _scale_of(stored: Stored, name: str) -> str | None:
    """Name of the scales of a tensor."""
    module = name.removesuffix(WEIGHT)
    names = [f"{name}_scale_inv", f"{name}_scale", f"{name}.scale"]
    if module != name:
        names += [f"{module}.scale", f"{module}.qscale_weight", f"{module}.scale_inv"]
    there = [item for item in names if item in stored.tensors and stored.tensors[item].type.dtype.name in SCALES]
    return there[0] if there else None


def _fp4(stored: Stored, name: str, scale: str | None) -> Tensor:
    """Two 4-bit floats a byte, with scales for blocks along the rows."""
    codes = looked_up(nibbles(stored.tensors[name]), FP4_DOUBLED)
    assert scale is not None
    part = looked_up(stored.tensors[scale], HALVED) if stored.tensors[scale].type.dtype.name == "u8" else None
    if part is None or codes.row_size % part.row_size:
        raise stored.misfit("4-bit floats have exponents of blocks", name, scale)
    return decoded(codes, part, tile=(1, codes.row_size // part.row_size))


def _words(stored: Stored, codes: Tensor, scale: str, block: tuple[int, ...]) -> str:
    tile = tile_of(codes.shape, stored.tensors[scale].shape, block) or ()
    if tile == codes.shape:
        return "FP8, one scale for the whole"
    if tile[-1] == codes.shape[-1] and tile[-2] == 1:
        return "FP8, one scale a row"
    return f"FP8 in blocks of {tile[-2]} x {tile[-1]}"


FP8 = Encoding("FP8", ("fp8", "fbgemm_fp8", "compressed-tensors", "modelopt"), find)
"""The row of the table."""
