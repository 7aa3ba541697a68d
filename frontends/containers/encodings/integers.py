"""Integers of compressed-tensors: packed in words, or as plain bytes.

Packed: ``weight_packed: i32[out, in * bits / 32]`` along the input, the lowest bits first and without gaps, with half of the
range added to every code; ``weight_scale: [out, groups]``; ``weight_zero_point`` packed in the same way along the output,
absent when codes are symmetric; ``weight_shape`` says how many codes of the last word count; ``weight_g_idx: [in]`` says
which group a feature belongs to when groups are in activation order. Bytes: ``weight: i8``, with scales for groups, rows or
the whole, and zero points of the same shape.

Layout: compressed-tensors 0.20 (``compressors/pack_quantized``, ``compressors/naive_quantized``).
"""

from __future__ import annotations

from collections.abc import Iterable

from frontends.containers.encodings.stored import Encoding, Found, Stored, group_words, in_blocks, scale_numbers, small
from ir.base.diag import LadingError
from ir.base.types import I8
from ir.quant.coded import decoded
from ir.tensor.base import Tensor
from ir.tensor.packed import bit_codes
from ir.tensor.rearranged import column_gather, groups_of, reshaped

WIDTHS = (4, 8, 2, 3, 5, 6, 7)
"""Widths that there are, the usual one first."""


def packed(stored: Stored) -> Iterable[Found]:
    """Modules with ``weight_packed`` words."""
    for module, words in stored.ending(".weight_packed"):
        if words.type.dtype.name != "i32" or words.type.rank != 2:
            continue
        scale = stored.need(f"{module}.weight_scale", module)
        columns = _columns(stored, module, words, scale)
        bits = _width(stored, module, words, columns)
        yield _packed_weight(stored, module, bits, columns)


def _columns(stored: Stored, module: str, words: Tensor, scale: Tensor) -> int:
    """Input features of a packed matrix.

    Its shape says how many there are; it is read where the words may hold more, and not where the groups of the
    configuration fill them.
    """
    groups = scale.shape[1] if scale.type.rank == 2 else 1
    rooms = [words.row_size * 32 // bits for bits in _said(stored, "num_bits") or WIDTHS[:1]]
    filled = [groups * size for size in _said(stored, "group_size") if groups > 1]
    sure = next((room for room in rooms if room in filled), None)
    if sure is not None:
        return sure
    shape = stored.tensors.get(f"{module}.weight_shape")
    given = small(shape) if shape is not None else None
    if given is not None and given.shape == (2,) and int(given[0]) == words.row_count and int(given[1]) > 0:
        return int(given[1])
    return filled[0] if filled else rooms[0]


def _said(stored: Stored, key: str) -> list[int]:
    """What the groups of the configuration say of weights under a key."""
    groups = stored.declared.record.get("config_groups")
    records = (
        [item.get("weights") for item in groups.values() if isinstance(item, dict)] if isinstance(groups, dict) else []
    )
    found = [item.get(key) for item in records if isinstance(item, dict)]
    return [number for number in found if isinstance(number, int) and not isinstance(number, bool) and number > 0]


def _width(stored: Stored, module: str, words: Tensor, columns: int) -> int:
    fitting = [bits for bits in WIDTHS if -(-columns * bits // 32) == words.row_size]
    said = _said(stored, "num_bits")
    chosen = next((bits for bits in said if bits in fitting), None)
    if chosen is None and not fitting:
        # Older releases left the rest of each word empty where the width does not divide it.
        raise stored.misfit(
            "the words do not hold the codes of the shape", f"{module}.weight_packed", f"{module}.weight_scale"
        )
    if chosen is None and said:
        raise stored.contradicts(f"{said[0]} bits", f"{module} is packed in {fitting[0]} bits")
    return chosen or fitting[0]


def _packed_weight(stored: Stored, module: str, bits: int, columns: int) -> Found:
    names = tuple(f"{module}.weight_{part}" for part in ("packed", "scale", "zero_point", "g_idx", "shape"))
    words, given = stored.tensors[names[0]], stored.tensors[names[1]]
    rows = words.row_count
    codes = bit_codes(words, bits, columns)
    groups = given.shape[1] if given.type.rank == 2 else 1
    if given.type.size != rows * groups and given.type.size != 1:
        raise stored.misfit("scales do not fit the codes", *names[:2])
    single = given.type.size == 1
    shape = (1, 1) if single else (rows, groups)
    parts = [reshaped(scale_numbers(given), shape)]
    zeros = stored.tensors.get(names[2])
    if zeros is not None:
        parts.append(_zeros(stored, zeros, bits, shape, names))
    words_ = f"compressed-tensors, {bits} bits{group_words(columns, groups)}"
    made_of = stored.there(*names)
    index = stored.tensors.get(names[3])
    order = small(index) if index is not None else None
    if index is not None and (order is None or order.min(initial=0) >= 0):
        tensor = decoded(codes, *(column_gather(part, groups_of(index, groups)) for part in parts), tile=(1, 1))
    else:
        said = (size for size in _said(stored, "group_size") if -(-columns // size) == groups)
        size = next(said, -(-columns // groups))
        tensor = decoded(codes, *parts, tile=(rows if single else 1, size))
    return Found(f"{module}.weight", tensor, made_of, words_)


def _zeros(stored: Stored, zeros: Tensor, bits: int, shape: tuple[int, int], names: tuple[str, ...]) -> Tensor:
    """Zero points packed along the output, or as plain bytes."""
    if zeros.type.dtype == I8 and zeros.type.size == shape[0] * shape[1]:
        return reshaped(bit_codes(reshaped(zeros, (shape[0], shape[1])), 8, shape[1]), shape)
    if zeros.type.rank != 2 or zeros.shape != (-(-shape[0] * bits // 32), shape[1]):
        raise stored.misfit("zeros do not fit the scales", *names[:3])
    return bit_codes(zeros, bits, shape[0], axis=0)


def plain(stored: Stored) -> Iterable[Found]:
    """Modules with ``weight`` as bytes and ``weight_scale``."""
    for module, codes in stored.ending(".weight"):
        scale = f"{module}.weight_scale"
        if codes.type.dtype != I8 or codes.type.rank != 2 or scale not in stored.tensors:
            continue
        zeros = stored.there(f"{module}.weight_zero_point")
        if zeros and stored.tensors[zeros[0]].type.dtype != I8:
            raise LadingError("F578", f"{zeros[0]} is {stored.tensors[zeros[0]].type}, not i8", stored.where)
        numbers = in_blocks(stored, codes, (scale, *zeros))
        made_of = (f"{module}.weight", scale, *zeros)
        given = stored.tensors[scale]
        groups = given.shape[1] if given.type.rank == 2 else 1
        yield Found(
            f"{module}.weight", numbers, made_of, f"compressed-tensors, 8 bits{group_words(codes.row_size, groups)}"
        )


PACKED = Encoding("compressed-tensors", ("compressed-tensors",), packed)
"""Packed words."""
BYTES = Encoding("compressed-tensors", ("compressed-tensors", "modelopt"), plain)
"""Plain bytes."""
