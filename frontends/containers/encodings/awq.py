"""AWQ in its usual layout ("gemm"): 4-bit integers in groups along the input features, packed along the output.

``qweight: i32[in, out / 8]``, ``qzeros: i32[groups, out / 8]``, ``scales: [groups, out]``. Of eight outputs in a word, number i
lies in nibble 0, 4, 1, 5, 2, 6, 3, 7. A weight is ``(q - z) * s``.

Layout: AutoAWQ 0.2 (``utils/packing_utils.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from frontends.containers.encodings.stored import Encoding, Found, Stored, group_words, scale_numbers
from ir.base.diag import LadingError
from ir.quant.coded import decoded
from ir.tensor.packed import bit_codes
from ir.tensor.rearranged import transposed

BITS = 4
ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def find(stored: Stored) -> Iterable[Found]:
    """Modules with ``qweight``, ``qzeros`` and ``scales`` whose outputs are packed in the columns of ``qweight``."""
    for module, words in stored.ending(".qweight"):
        scales = stored.tensors.get(f"{module}.scales")
        if scales is None or words.type.rank != 2 or scales.type.rank != 2 or words.shape[1] == scales.shape[1]:
            continue
        version = stored.declared.word("version", "checkpoint_format", "format")
        inputs, (groups, outputs) = words.row_count, scales.shape
        fits = words.type.dtype.bits == 32 and words.row_size * 32 == outputs * BITS and inputs % max(groups, 1) == 0
        if not fits or version not in ("", "gemm", "awq", "gptq"):
            layout = f" in the layout {version}" if version and version != "gemm" else ""
            message = (
                f"the checkpoint is quantized (AWQ{layout}, of which {module} is packed in a way that is not read)"
            )
            raise LadingError("F535", message, stored.where, "start from the original, or from AWQ's gemm version")
        yield _weight(stored, module)


def _weight(stored: Stored, module: str) -> Found:
    parts = tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    words, scales = stored.tensors[parts[0]], stored.tensors[parts[2]]
    inputs, (groups, outputs) = words.row_count, scales.shape
    _agree(stored, module, inputs, groups)
    if parts[1] not in stored.tensors and stored.declared.says("zero_point") is not False:
        stored.need(parts[1], module)
    codes = bit_codes(transposed(words), BITS, outputs, axis=0, order=ORDER)
    numbers = [transposed(scale_numbers(scales))]
    if parts[1] in stored.tensors:
        packed = stored.tensors[parts[1]]
        if packed.shape != (groups, words.row_size):
            raise stored.misfit("every group has a scale and a zero", *parts)
        numbers.append(bit_codes(transposed(packed), BITS, outputs, axis=0, order=ORDER))
    tensor = decoded(codes, *numbers, tile=(1, inputs // groups))
    return Found(f"{module}.weight", tensor, stored.there(*parts), f"AWQ, {BITS} bits{group_words(inputs, groups)}")


def _agree(stored: Stored, module: str, inputs: int, groups: int) -> None:
    bits, size = stored.declared.number("bits", "w_bit"), stored.declared.number("group_size", "q_group_size")
    if bits not in (None, BITS):
        raise stored.contradicts(f"{bits} bits", f"{module} is packed in {BITS} bits")
    if size is not None and groups * (size if size > 0 else inputs) != inputs:
        raise stored.contradicts(f"groups of {size}", f"{module} has {groups} groups of {inputs} features")


AWQ = Encoding("AWQ", ("awq", "auto-round", "intel/auto-round"), find)
"""The row of the table."""
