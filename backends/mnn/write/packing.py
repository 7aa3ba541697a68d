"""How MNN stores quantized numbers: a bit stream of unsigned codes, and scales with zeros (the "alpha").

Codes are unsigned, ``u = q + 2^(bits-1)``, row-major in one continuous stream, most significant bit first: at 4 bits
the even element is the high nibble, at 3, 5, 6 and 7 bits codes cross bytes, and rows are not aligned to bytes.
"""

from __future__ import annotations

import math

import numpy as np

from ir.base.diag import LadingError
from ir.quant.weight import QuantizedWeight, real_zero, thread_scratch
from ir.tensor.native import native


def row_alignment(bits: int, features: int) -> int:
    """Smallest number of rows whose codes fill whole bytes; ranges written separately start at multiples of it."""
    return 8 // math.gcd(8, bits * features)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of a stream of `count` codes."""
    return (count * bits + 7) // 8


def pack_codes(codes: np.ndarray, bits: int, out: np.ndarray | None = None) -> np.ndarray:
    """Signed codes as MNN's bit stream.

    Args:
        codes: int8 of any shape, row-major, each within ``-2^(bits-1)`` to ``2^(bits-1)-1`` (not checked).
        bits: 2 to 8.
        out: uint8 vector of exactly `packed_bytes` to write to; a new one when None.

    Returns:
        The packed bytes; the last byte is filled up with zero bits.
    """
    size = packed_bytes(codes.size, bits)
    if out is None:
        out = np.empty(size, np.uint8)
    if out.shape != (size,) or out.dtype != np.uint8:
        raise ValueError(f"{codes.size} codes of {bits} bits need uint8[{size}], not {out.dtype}{list(out.shape)}")
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    loops = native()
    if loops is not None:
        loops.pack(flat, out, bits)
        return out
    half = np.uint8(1 << (bits - 1))
    if bits == 8:
        np.add(flat, half, out=out)
        return out
    scratch = thread_scratch()
    unsigned = scratch.take("unsigned", (-(-flat.size // 8) * 8,), np.uint8)
    np.add(flat, half, out=unsigned[: flat.size])
    unsigned[flat.size :] = 0
    if bits in (2, 4):
        _pack_by_multiplying(unsigned, bits, out)
    else:
        _pack_by_folding(unsigned, bits, out)
    return out


def _pack_by_multiplying(unsigned: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Bring the codes of one output byte into the top byte of a machine word by one multiplication.

    The 8/bits codes of a byte are read as one little-endian word. The factor moves code i from byte i to its place in
    the top byte; what lands elsewhere does not overlap, so nothing carries into it.
    """
    per_byte = 8 // bits
    kind = np.dtype(f"u{per_byte}")
    top = 8 * (per_byte - 1)
    factor = sum(1 << (top + (per_byte - 1 - place) * bits - 8 * place) for place in range(per_byte))
    words = unsigned.view(kind)
    packed = thread_scratch().take("words", words.shape, kind)
    np.multiply(words, kind.type(factor), out=packed)
    np.right_shift(packed, kind.type(top), out=packed)
    np.copyto(out, packed[: out.size], casting="unsafe")


def _pack_by_folding(unsigned: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Fold eight codes, read as one big-endian 64-bit word, to the low ``8 * bits`` bits in three halvings."""
    words = thread_scratch().take("words", (unsigned.size // 8,), np.uint64)
    upper = thread_scratch().take("upper", words.shape, np.uint64)
    np.copyto(words, unsigned.view(">u8"))
    for step, keep in enumerate((0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF, 0x00000000FFFFFFFF)):
        width = 8 << step
        np.right_shift(words, np.uint64(width), out=upper)
        np.bitwise_and(upper, np.uint64(keep), out=upper)
        np.left_shift(upper, np.uint64(bits << step), out=upper)
        np.bitwise_and(words, np.uint64(keep), out=words)
        np.bitwise_or(words, upper, out=words)
    columns = words.view(np.uint8).reshape(-1, 8)
    whole = out.size // bits
    table = out[: whole * bits].reshape(whole, bits)
    for place in range(bits):
        table[:, place] = columns[:whole, bits - 1 - place]
    rest = out.size - whole * bits
    if rest:
        out[whole * bits :] = columns[whole, bits - rest : bits][::-1]


def pack_alpha(scale: np.ndarray, zero: np.ndarray | None, half: bool = False) -> np.ndarray:
    """MNN's alpha: ``scale[n, blocks]``, or ``(zero, scale)`` pairs ``[n, blocks, 2]``.

    Args:
        scale: float32[n, blocks].
        zero: int8 zero points (stored as ``-zero_point * scale``), float32 real values of code 0, or None (symmetric).
        half: float16 instead of float32; read by MNN 3.6.0 and later only.

    Raises:
        LadingError: Q403 when a scale or zero does not fit half precision.
    """
    kind = np.float16 if half else np.float32
    real = real_zero(scale, zero)
    out = np.empty(scale.shape if real is None else (*scale.shape, 2), kind)
    try:
        with np.errstate(over="raise"):
            if real is None:
                out[...] = scale
            else:
                out[..., 0] = real
                out[..., 1] = scale
    except FloatingPointError as error:
        raise LadingError("Q403", "a scale or zero does not fit half precision", hint="store them as f32") from error
    return out


def quantize_pack(
    weight: QuantizedWeight, start: int, stop: int, out: np.ndarray | None = None, half: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize and pack the rows `start` to `stop` in cache-sized pieces.

    Args:
        weight: the weight ``[out, in]``.
        start: first row; a multiple of `row_alignment` when the bytes are to follow those of earlier rows.
        stop: row to stop before; likewise, unless it is the last.
        out: uint8 vector for the packed codes; a new one when None.
        half: store alpha as float16.

    Returns:
        The packed codes and the alpha array of these rows.

    Raises:
        LadingError: Q402, Q403 and what reading the source raises.
    """
    bits, features = weight.storage.bits, weight.shape[1]
    size = packed_bytes((stop - start) * features, bits)
    if out is None:
        out = np.empty(size, np.uint8)
    if out.shape != (size,) or out.dtype != np.uint8:
        raise ValueError(f"rows {start} to {stop} need uint8[{size}], not {out.dtype}{list(out.shape)}")
    scratch, shape = thread_scratch(), (stop - start, weight.blocks)
    scale = scratch.take("scales", shape, np.float32)
    zero = None if weight.storage.symmetric else scratch.take("zeros", shape, np.float32)
    for first, last, part in weight.pieces(start, stop, row_alignment(bits, features)):
        low = (first - start) * features * bits // 8
        count = packed_bytes((last - first) * features, bits)
        pack_codes(part.codes, bits, out[low : low + count])
        scale[first - start : last - start] = part.scale
        if zero is not None:
            zero[first - start : last - start] = real_zero(part.scale, part.zero)
    return out, pack_alpha(scale, zero, half)
