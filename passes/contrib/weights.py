"""Weights that are stored as packed codes in blocks, as blocked dequantizations of constant codes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ir.base.types import F32
from ir.graph.graph import Value
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor
from ir.tensor.packed import code_rows
from ir.tensor.rearranged import reshaped, transposed
from passes.contrib.building import Site, expansion

BLOCKS_SINCE = 21
"""First opset whose DequantizeLinear has blocks."""
WIDTHS = (2, 4, 8)


@expansion("com.microsoft.MatMulNBits")
def matmul_bits(site: Site) -> Value:
    """A product by a dequantization ``[in, out]``; of codes in the middle of whose range 0 is, where none is given."""
    site.need(site.input(4) is None, "its input features are in another order (g_idx)")
    site.need(not site.attr("weight_prepacked"), "its weight is laid out for a kernel")
    rows, columns, block = site.attr("N"), site.attr("K"), site.attr("block_size")
    blocks = -(-columns // block)
    codes = _tensor(site, 1, "its codes are computed", (rows, blocks, -1))
    scales = _tensor(site, 2, "its scales are computed", (rows, blocks))
    zeros = None
    if site.input(3) is not None:
        stored = site.constant(site.input(3))
        floats = stored is not None and stored.type.dtype.is_float
        zeros = _tensor(site, 3, "its zero points are computed", (rows, blocks if floats else -1))
    weight = _dequantized(site, codes, scales, zeros, columns, axis=0)
    return site.sum_of(site.op("MatMul", site.operand(0), weight), site.input(5))


@expansion("com.microsoft.GatherBlockQuantized")
def gather_blocks(site: Site) -> Value:
    """Rows of a dequantization."""
    data = site.type_of(site.operand(0))
    site.need(data.rank == 2 and data.is_static, f"its table is {data}, no matrix")
    rank, rows = 2, site.size(site.operand(0), 0)
    site.need(site.attr("gather_axis") % rank == 0, "it gathers columns")
    site.need(site.attr("quantize_axis") % rank == 1, "its blocks are not along the rows")
    block, packed = site.attr("block_size"), data.dtype.name == "u8"
    bits = site.attr("bits") if packed else data.dtype.bits
    columns = site.size(site.operand(0), 1) * (8 // bits if packed else 1)
    blocks = -(-columns // block)
    scales = _tensor(site, 2, "its scales are computed", (rows, blocks))
    if packed:
        codes = _tensor(site, 0, "its codes are computed", (rows, -1))
        zeros = None if site.input(3) is None else _tensor(site, 3, "its zero points are computed", (rows, -1))
        table = _dequantized(site, codes, scales, zeros, columns, axis=1, bits=bits)
    else:
        codes = _tensor(site, 0, "its codes are computed", (rows, columns))
        zeros = None if site.input(3) is None else _tensor(site, 3, "its zero points are computed", (rows, blocks))
        table = _blocked(site, codes, scales, zeros, axis=1)
    return site.op("Gather", table, site.operand(1), axis=0)


def _tensor(site: Site, index: int, otherwise: str, shape: Sequence[int]) -> Tensor:
    """A constant operand in another shape, of which one size may be -1; `Stays` where it is none or does not fit."""
    found = site.constant(site.input(index))
    if found is None:
        site.stay(otherwise)
    count, known = found.type.size or 0, int(np.prod([size for size in shape if size > 0]))
    site.need(known > 0 and count % known == 0 and (-1 in shape or count == known), f"input {index} is {found.type}")
    return reshaped(found, [size if size >= 0 else count // known for size in shape])


def _dequantized(
    site: Site, codes: Tensor, scales: Tensor, zeros: Tensor | None, columns: int, *, axis: int, bits: int = 0
) -> Value:
    """The float matrix of packed codes ``u8[rows, ...]``, scales and zeros ``[rows, blocks]``.

    Without zeros the middle of the codes' range is 0, as it is of signed codes.
    """
    bits = bits or site.attr("bits")
    site.need(bits in WIDTHS and codes.type.dtype.name == "u8", f"its codes have {bits} bits in {codes.type.dtype}")
    site.need(codes.row_size * 8 // bits >= columns, f"its codes are {codes.type}")
    if zeros is None:
        return _blocked(site, code_rows(codes, f"i{bits}", columns), scales, None, axis)
    if zeros.type.dtype.is_float:
        half = np.float32(1 << (bits - 1))
        real = (half - zeros.load().astype(np.float32)) * scales.load().astype(np.float32)
        return _blocked(site, code_rows(codes, f"i{bits}", columns), scales, InlineTensor(real), axis)
    site.need(zeros.type.dtype.name == "u8", f"its zero points are {zeros.type}")
    blocks = scales.shape[1]
    site.need(zeros.row_size * 8 // bits >= blocks, f"its zero points are {zeros.type}")
    return _blocked(site, code_rows(codes, f"u{bits}", columns), scales, code_rows(zeros, f"u{bits}", blocks), axis)


def _blocked(site: Site, codes: Tensor, scales: Tensor, zeros: Tensor | None, axis: int) -> Value:
    """A blocked dequantization, of the transposed matrix for blocks along axis 0."""
    site.need_opset(BLOCKS_SINCE)
    affine, kind = zeros is not None and zeros.type.dtype.is_float, scales.type.dtype
    scales = cast(scales, F32) if affine else scales
    parts = [codes, scales] if zeros is None else [codes, scales, zeros]
    values = [site.const(transposed(part) if axis == 0 else part) for part in parts]
    op = "lading.AffineDequantize" if affine else "DequantizeLinear"
    found = site.op(op, *values, axis=axis, block_size=site.attr("block_size"))
    return site.op("Cast", found, to=kind.onnx) if affine and kind != F32 else found


__all__ = ["gather_blocks", "matmul_bits"]
