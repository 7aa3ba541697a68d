"""4-bit floats of compressed-tensors and modelopt: NVFP4 and MXFP4 with two numbers to a byte.

``weight_packed: u8[out, in / 2]`` (in modelopt ``weight``), the low nibble first. NVFP4: ``weight_scale: f8e4m3fn[out, in / 16]``
and one number for the whole, which compressed-tensors stores as a divisor (``weight_global_scale``) and modelopt as a factor
(``weight_scale_2``). MXFP4: ``weight_scale: u8[out, in / 32]`` exponents.

Layout: compressed-tensors 0.20 (``compressors/nvfp4``, ``compressors/mxfp4``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from frontends.containers.encodings.stored import FLOAT8, Encoding, Found, Stored
from frontends.containers.encodings.tables import FP4_DOUBLED, HALVED, nibbles
from ir.base.types import U8
from ir.quant.coded import decoded
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.packed import looked_up


def find(stored: Stored) -> Iterable[Found]:
    """Bytes beside ``weight_scale``."""
    for name, tensor in stored.tensors.items():
        module, _, last = name.rpartition(".")
        scales = stored.tensors.get(f"{module}.weight_scale")
        if (
            last not in ("weight_packed", "weight")
            or tensor.type.dtype != U8
            or tensor.type.rank != 2
            or scales is None
        ):
            continue
        rows, columns = tensor.row_count, 2 * tensor.row_size
        if scales.type.rank != 2 or scales.row_count != rows or not scales.row_size or columns % scales.row_size:
            raise stored.misfit("scales are those of blocks along the rows", name, f"{module}.weight_scale")
        codes = looked_up(nibbles(tensor), FP4_DOUBLED)
        block = columns // scales.row_size
        if scales.type.dtype == U8:
            numbers, words = looked_up(scales, HALVED), f"MXFP4, blocks of {block}"
        elif scales.type.dtype.name in FLOAT8:
            numbers, words = _halves(stored, module, scales), f"NVFP4, blocks of {block}"
        else:
            raise stored.misfit("scales of 4-bit floats are 8-bit floats or exponents", name, f"{module}.weight_scale")
        beside = ("weight_scale", "weight_global_scale", "weight_scale_2", "weight_shape")
        made_of = (name, *stored.there(*(f"{module}.{item}" for item in beside)))
        yield Found(f"{module}.weight", decoded(codes, numbers, tile=(1, block)), made_of, words)


def _halves(stored: Stored, module: str, scales: Tensor) -> Tensor:
    """Half of the scales of blocks, the number for the whole included."""
    names = stored.there(f"{module}.weight_scale_2") or (f"{module}.weight_global_scale",)
    number = stored.need(names[0], module).load().astype(np.float32).reshape(-1)
    if number.size != 1:
        raise stored.misfit("one number goes with all scales", *names)
    codes = np.arange(256, dtype=np.uint8).view(scales.type.dtype.numpy).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        table = codes * number if names[0].endswith("_2") else codes / number
    return looked_up(scales, InlineTensor(table * np.float32(0.5)))


NVFP4 = Encoding("NVFP4", ("compressed-tensors", "modelopt", "nvfp4"), find)
"""The row of the table."""
