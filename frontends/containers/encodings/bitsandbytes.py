"""bitsandbytes: 4-bit places in a table with a largest magnitude for each block, or bytes with one for each row.

4 bits: ``weight: u8[n / 2, 1]`` is flat over the row-major matrix, the high nibble first; ``weight.quant_map: f32[16]`` the
table; ``weight.absmax`` the factor of each block of flat numbers, which may cross rows; the tensor
``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``) JSON text with shape and block size. When nested, ``absmax`` is itself
a byte for each block: ``nested_quant_map[byte] * nested_absmax[block of 256] + nested_offset``. 8 bits: ``weight: i8``,
``SCB: [out]``, and a weight is ``q * SCB / 127``.

Layout: bitsandbytes 0.50 (``QuantState``, ``dequantize_blockwise`` and ``int8_vectorwise_dequant`` of ``functional``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from frontends.containers.encodings.stored import Encoding, Found, Stored, scale_numbers
from frontends.containers.encodings.tables import flat_nibbles
from ir.base.types import F32, I8, U8
from ir.quant.coded import decoded
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast, scaled, shifted
from ir.tensor.packed import looked_up
from ir.tensor.rearranged import reshaped, row_slice

STATE = ".quant_state.bitsandbytes__"
MAX_STATE = 1 << 16
"""Longest text of a state."""


@dataclass(frozen=True)
class _State:
    """What the JSON text of a 4-bit weight says."""

    kind: str
    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float


def find_4(stored: Stored) -> Iterable[Found]:
    """Tensors with a ``quant_state``."""
    for name in stored.tensors:
        module, mark, kind = name.partition(STATE)
        if not mark:
            continue
        state = _state(stored, name, kind)
        names = tuple(f"{module}.{part}" for part in ("absmax", "quant_map"))
        codes = stored.need(module, module)
        for part in names:
            stored.need(part, module)
        rows, columns = state.shape
        blocks = -(-rows * columns // state.block)
        if codes.type.dtype != U8 or (codes.type.size or 0) * 2 != rows * columns + rows * columns % 2:
            raise stored.misfit(f"a matrix {list(state.shape)} has half as many bytes as numbers", module, name)
        table = stored.tensors[names[1]]
        if table.shape != (16,) or stored.tensors[names[0]].type.size != blocks:
            raise stored.misfit(f"{blocks} blocks of {state.block} have a factor each", *names)
        factors, nested = _factors(stored, module, state)
        flat = looked_up(flat_nibbles(codes), cast(table, F32))
        numbers = decoded(flat, factors, tile=(state.block,))
        tensor = reshaped(row_slice(numbers, 0, rows * columns), state.shape)
        words = f"bitsandbytes {state.kind} in blocks of {state.block}"
        yield Found(module, tensor, (module, name, *names, *nested), words)


def _state(stored: Stored, name: str, kind: str) -> _State:
    raw = stored.tensors[name]
    if raw.type.dtype != U8 or not 0 < (raw.type.size or 0) <= MAX_STATE:
        raise stored.misfit("the state of a weight is a short text", name)
    try:
        record = json.loads(raw.load().tobytes().decode("utf-8"))
        rows, columns = (int(size) for size in record["shape"])
        block = int(record["blocksize"])
        nested = int(record.get("nested_blocksize") or 256), float(record.get("nested_offset") or 0.0)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise stored.misfit(f"the state of a weight is not what bitsandbytes writes ({error})", name) from None
    if min(rows, columns, block, nested[0]) < 1 or not np.isfinite(nested[1]):
        raise stored.misfit("the state of a weight has sizes below 1", name)
    return _State(kind, (rows, columns), block, *nested)


def _factors(stored: Stored, module: str, state: _State) -> tuple[Tensor, tuple[str, ...]]:
    """The factor of each block, f32[blocks], and the names of what nested ones are made of."""
    absmax = stored.tensors[f"{module}.absmax"]
    flat = reshaped(absmax, (absmax.type.size or 0,))
    if absmax.type.dtype != U8:
        return cast(flat, F32), ()
    names = (f"{module}.nested_absmax", f"{module}.nested_quant_map")
    factors, table = (stored.need(name, module) for name in names)
    if table.shape != (256,) or factors.type.size != -(-flat.row_count // state.nested_block):
        raise stored.misfit(f"nested factors are of blocks of {state.nested_block}", f"{module}.absmax", *names)
    outer = reshaped(cast(factors, F32), (factors.type.size or 0,))
    inner = decoded(looked_up(flat, cast(table, F32)), outer, tile=(state.nested_block,))
    return shifted(inner, state.nested_offset), names


def find_8(stored: Stored) -> Iterable[Found]:
    """Bytes with ``SCB``."""
    for module, scale in stored.ending(".SCB"):
        name = f"{module}.weight"
        codes = stored.need(name, module)
        if codes.type.dtype != I8 or codes.type.rank != 2 or scale.type.size != codes.row_count:
            raise stored.misfit("a matrix of bytes has a factor for each row", name, f"{module}.SCB")
        factors = reshaped(scaled(scale_numbers(scale), 1 / 127), (codes.row_count, 1))
        tensor = decoded(codes, factors, tile=(1, codes.row_size))
        parts = (name, *stored.there(f"{module}.SCB", f"{module}.weight_format"))
        yield Found(name, tensor, parts, "bitsandbytes, 8 bits, one scale a row")


FOUR_BITS = Encoding("bitsandbytes, 4 bits", ("bitsandbytes",), find_4)
"""nf4 and fp4."""
EIGHT_BITS = Encoding("bitsandbytes, 8 bits", ("bitsandbytes",), find_8)
"""Bytes."""
