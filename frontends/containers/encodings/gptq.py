"""GPTQ: integers of 2, 3, 4 or 8 bits in groups along the input features, packed in words.

``qweight: [in * bits / 32, out]`` is packed along the input and ``qzeros: [groups, out * bits / 32]`` along the output, the
lowest bits first and numbers across the border of two words; ``scales: [groups, out]``; ``g_idx: [in]`` says which group a
feature belongs to, in any order (activation order). A weight is ``(q - z) * s``. The older form, still the usual one, stores
``z - 1``; the newer one (``checkpoint_format: gptq_v2``) stores z.

Layout: AutoGPTQ 0.7 (``qlinear_cuda_old``), GPTQModel 7 (``utils/model_dequant.py``).
"""

from __future__ import annotations

from collections.abc import Iterable

from frontends.containers.encodings.stored import Encoding, Found, Stored, group_words, scale_numbers, small
from ir.base.diag import LadingError
from ir.quant.coded import decoded
from ir.tensor.base import Tensor
from ir.tensor.packed import bit_codes
from ir.tensor.rearranged import column_gather, groups_of, transposed

WIDTHS = (4, 8, 2, 3)
"""Widths that there are, the usual one first."""
OTHER_LAYOUTS = ("marlin", "bitblas", "gptq_p", "qqq", "ipex", "gemv", "exl2", "exl3")
"""Values of ``checkpoint_format`` under which tensors of these names are arranged otherwise."""


def find(stored: Stored) -> Iterable[Found]:
    """Modules with ``qweight``, ``qzeros`` and ``scales`` whose outputs are the columns of ``qweight``."""
    plus: int | None = None
    for module, words in stored.ending(".qweight"):
        scales = stored.tensors.get(f"{module}.scales")
        if scales is None or words.type.rank != 2 or not words.type.dtype.is_integer or scales.type.rank != 2:
            continue
        if words.shape[1] != scales.shape[1]:
            continue
        _refuse_layouts(stored)
        zeros = stored.need(f"{module}.qzeros", module)
        bits = _width(stored, module)
        if plus is None:
            plus = 0 if _stores_zeros(stored, zeros, bits, scales.shape[1]) else 1
        yield _weight(stored, module, bits, plus)


def _refuse_layouts(stored: Stored) -> None:
    layout = stored.declared.word("checkpoint_format", "format")
    if layout in OTHER_LAYOUTS:
        message = f"the checkpoint is quantized (GPTQ in the layout {layout})"
        raise LadingError("F535", message, stored.declared.where, "start from the original or from the plain GPTQ one")


def _width(stored: Stored, module: str) -> int:
    """Bits of a module's codes: those that its shapes allow, checked against the configuration."""
    names = tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    words, zeros, scales = (stored.tensors[name] for name in names[:3])
    index = stored.tensors.get(names[3])
    word, outputs = words.type.dtype.bits, scales.shape[1]
    fitting = [bits for bits in WIDTHS if -(-outputs * bits // word) == zeros.row_size]
    if index is not None:
        fitting = [bits for bits in fitting if -(-index.row_count * bits // word) == words.row_count]
    said = stored.declared.number("bits", "w_bit")
    if said in fitting:
        return said
    if not fitting:
        raise stored.misfit("the shapes of a GPTQ weight do not fit each other", *names)
    if said is not None and "dynamic" not in stored.declared.record:
        raise stored.contradicts(f"{said} bits", f"{module} is packed in {fitting[0]} bits")
    return fitting[0]


def _stores_zeros(stored: Stored, zeros: Tensor, bits: int, outputs: int) -> bool:
    """True when zeros are stored as they are, False when they are stored less 1.

    The configuration says it. Without, symmetric codes show it: their zeros are all the middle of the range. Others are
    taken for the older form.
    """
    layout = stored.declared.word("checkpoint_format", "format")
    found = small(bit_codes(zeros, bits, outputs))
    alike = found is not None and found.size > 0 and bool((found == found.flat[0]).all())
    middle = int(found.flat[0]) if alike and found is not None else None
    newer = layout in ("gptq_v2", "gptqmodel")
    if layout and stored.declared.says("sym") and middle in (0, -1) and newer != (middle == 0):
        kept = "as they are" if middle == 0 else "less 1"
        raise stored.contradicts(f"checkpoint_format {layout} and sym true", f"the zeros are stored {kept}")
    return newer if layout else middle == 0


def _weight(stored: Stored, module: str, bits: int, plus: int) -> Found:
    parts = tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    words, packed, given = (stored.tensors[name] for name in parts)
    index = stored.tensors.get(f"{module}.g_idx")
    groups, outputs = given.shape
    inputs = index.row_count if index is not None else words.row_count * words.type.dtype.bits // bits
    if packed.row_count != groups:
        raise stored.misfit("every group has a scale and a zero", *parts)
    codes = bit_codes(transposed(words), bits, inputs)
    scale = transposed(scale_numbers(given))
    zero = transposed(bit_codes(packed, bits, outputs, plus=plus))
    size = _group(stored, module, inputs, groups, outputs)
    name, words_ = f"{module}.weight", f"GPTQ, {bits} bits{group_words(inputs, groups)}"
    if index is not None:
        order = groups_of(index, groups)
        tensor = decoded(codes, column_gather(scale, order), column_gather(zero, order), tile=(1, 1))
        return Found(name, tensor, (*parts, f"{module}.g_idx"), words_)
    return Found(name, decoded(codes, scale, zero, tile=(1, size)), parts, words_)


def _group(stored: Stored, module: str, inputs: int, groups: int, outputs: int) -> int:
    """Features of a group, which the configuration has to agree with."""
    said = stored.declared.number("group_size")
    if said is not None and "dynamic" not in stored.declared.record:
        wanted = said if said > 0 else inputs
        if -(-inputs // wanted) != groups:
            raise stored.contradicts(f"groups of {said}", f"{module} has {groups} groups of {inputs} features")
        return wanted
    if inputs % groups:
        raise stored.misfit("the groups do not divide the input features", f"{module}.qweight", f"{module}.scales")
    return inputs // groups


GPTQ = Encoding("GPTQ", ("gptq", "auto-round", "intel/auto-round"), find)
"""The row of the table."""
