"""One matrix in each encoding: the tensors that a checkpoint holds of it, and the float32 numbers that they stand for.

Packing is spelled out bit by bit on purpose, as the specifications of the encodings do, and shares nothing with the code
that reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

E4M3 = ml_dtypes.float8_e4m3fn
E8M0 = ml_dtypes.float8_e8m0fnu
BF16 = ml_dtypes.bfloat16
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
BNB_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip

Tensors = dict[str, np.ndarray]


class Made(NamedTuple):
    """A matrix as it is stored: tensors of its module by the end of their name, the float32 numbers that they stand for,
    and the codes ``[out, in]``, moved so that the middle of their range is 0, of an encoding that is one of equal steps."""

    tensors: Tensors
    numbers: np.ndarray
    codes: np.ndarray | None = None


Encode = Callable[[np.ndarray, np.random.Generator], Made]
"""From a matrix float32[out, in] to what is stored of it."""


def bits_packed(numbers: np.ndarray, bits: int, word: int = 32) -> np.ndarray:
    """Unsigned numbers ``[rows, n]`` in words along the rows: bit b of number i is bit ``i * bits + b`` of the row."""
    rows, count = numbers.shape
    width = -(-count * bits // word) * word
    stream = np.zeros((rows, width), np.uint8)
    for place in range(count):
        for bit in range(bits):
            stream[:, place * bits + bit] = (numbers[:, place].astype(np.int64) >> bit) & 1
    weights = (np.uint64(1) << np.arange(word, dtype=np.uint64)).reshape(1, 1, word)
    words = (stream.reshape(rows, -1, word).astype(np.uint64) * weights).sum(axis=2)
    return words.astype(f"u{word // 8}").view(f"i{word // 8}")


def grid(matrix: np.ndarray, bits: int, group: int, symmetric: bool, dtype: Any) -> tuple[np.ndarray, ...]:
    """Unsigned codes ``[out, in]``, zeros and scales ``[out, groups]`` by round to nearest."""
    rows, columns = matrix.shape
    blocks = matrix.reshape(rows, -1, group or columns)
    top = (1 << bits) - 1
    if symmetric:
        scale = np.abs(blocks).max(axis=2) / (top / 2)
        zero = np.full(scale.shape, (top + 1) // 2, np.int64)
    else:
        low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
        scale = (high - low) / top
        # Zeros of 0 and of the top have no like in every tool.
        zero = np.clip(np.rint(-low / scale), 1, top).astype(np.int64)
    scale = scale.astype(dtype)
    codes = np.rint(blocks / scale.astype(np.float32)[..., None]) + zero[..., None]
    return np.clip(codes, 0, top).astype(np.int64).reshape(rows, columns), zero, scale


def real(codes: np.ndarray, zero: np.ndarray, scale: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """``(q - z) * s`` in float32 with the group of each column."""
    return (codes - zero[:, groups]).astype(np.float32) * scale.astype(np.float32)[:, groups]


def _groups(columns: int, count: int) -> np.ndarray:
    return np.arange(columns) // (columns // count)


# ---- GPTQ and AWQ ----


def gptq(bits: int, group: int, symmetric: bool = True, order: bool = False, newer: bool = False) -> Encode:
    """GPTQ; `order` gives columns to groups in the order of a permutation, `newer` stores zeros as they are."""

    def encode(matrix: np.ndarray, rng: np.random.Generator) -> Made:
        columns = matrix.shape[1]
        codes, zero, scale = grid(matrix, bits, group, symmetric, np.float16)
        groups = _groups(columns, zero.shape[1])
        if order:
            groups = groups[rng.permutation(columns)]
            steps = scale.astype(np.float32)[:, groups]
            codes = np.clip(np.rint(matrix / steps) + zero[:, groups], 0, (1 << bits) - 1).astype(np.int64)
        stored = zero if newer else zero - 1
        tensors = {
            "qweight": bits_packed(codes, bits).T.copy(),
            "qzeros": bits_packed(stored.T, bits),
            "scales": scale.T.copy(),
            "g_idx": groups.astype(np.int32),
        }
        return Made(tensors, real(codes, zero, scale, groups), codes - (1 << (bits - 1)))

    return encode


def awq(group: int) -> Encode:
    """AWQ's gemm version, 4 bits."""

    def packed(numbers: np.ndarray) -> np.ndarray:
        words = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
        for place, nibble in enumerate((0, 4, 1, 5, 2, 6, 3, 7)):
            words |= numbers[:, place::8].astype(np.uint32) << np.uint32(4 * nibble)
        return words.view(np.int32)

    def encode(matrix: np.ndarray, rng: np.random.Generator) -> Made:
        codes, zero, scale = grid(matrix, 4, group, False, np.float16)
        tensors = {"qweight": packed(codes.T), "qzeros": packed(zero.T), "scales": scale.T.copy()}
        return Made(tensors, real(codes, zero, scale, _groups(matrix.shape[1], zero.shape[1])), codes - 8)

    return encode


# ---- compressed-tensors ----


def packed_integers(bits: int, group: int, symmetric: bool = True, order: bool = False) -> Encode:
    """``pack-quantized``."""

    def encode(matrix: np.ndarray, rng: np.random.Generator) -> Made:
        columns = matrix.shape[1]
        codes, zero, scale = grid(matrix, bits, group, symmetric, BF16)
        groups = _groups(columns, zero.shape[1])
        tensors: Tensors = {}
        if order:
            groups = groups[rng.permutation(columns)]
            steps = scale.astype(np.float32)[:, groups]
            codes = np.clip(np.rint(matrix / steps) + zero[:, groups], 0, (1 << bits) - 1).astype(np.int64)
            tensors["weight_g_idx"] = groups.astype(np.int32)
        tensors |= {
            "weight_packed": bits_packed(codes, bits),
            "weight_scale": scale,
            "weight_shape": np.array(matrix.shape, np.int64),
        }
        if not symmetric:
            tensors["weight_zero_point"] = bits_packed(zero.T, bits).T.copy()
        return Made(tensors, real(codes, zero, scale, groups), codes - (1 << (bits - 1)))

    return encode


def byte_integers(group: int, symmetric: bool = True) -> Encode:
    """``int-quantized``."""

    def encode(matrix: np.ndarray, rng: np.random.Generator) -> Made:
        codes, zero, scale = grid(matrix, 8, group, symmetric, BF16)
        tensors = {"weight": (codes - 128).astype(np.int8), "weight_scale": scale}
        if not symmetric:
            tensors["weight_zero_point"] = (zero - 128).astype(np.int8)
        return Made(tensors, real(codes, zero, scale, _groups(matrix.shape[1], zero.shape[1])), codes - 128)

    return encode


# ---- floats of 8 and 4 bits ----


def fp8(block: tuple[int, int], names: tuple[str, ...] = ("weight_scale_inv",), dtype: Any = np.float32) -> Encode:
    """8-bit floats; a block of 0 spans its axis. The first name is that of the scales, others are scales of activations."""

    def encode(matrix: np.ndarray, rng: np.random.Generator) -> Made:
        rows, columns = matrix.shape
        tall, wide = block[0] or rows, block[1] or columns
        spread = (np.arange(rows) // tall)[:, None], (np.arange(columns) // wide)[None]
        counts = -(-rows // tall), -(-columns // wide)
        scale = np.zeros(counts, np.float32)
        np.maximum.at(scale, spread, np.abs(matrix) / 448)
        scale = np.exp2(np.ceil(np.log2(scale))) if dtype is E8M0 else scale.astype(dtype).astype(np.float32)
        codes = (matrix / scale[spread]).astype(E4M3)
        stored = scale.astype(dtype).reshape((1,) if counts == (1, 1) else counts)
        tensors = {"weight": codes, names[0]: stored}
        tensors |= {name: np.array([0.37], np.float32) for name in names[1:]}
        return Made(tensors, codes.astype(np.float32) * scale[spread])

    return encode


def _fp4_codes(scaled: np.ndarray) -> np.ndarray:
    return np.abs(scaled[..., None] - FP4).argmin(axis=-1)


def nvfp4(matrix: np.ndarray, rng: np.random.Generator) -> Made:
    """``nvfp4-pack-quantized``."""
    rows = len(matrix)
    whole = np.float32(448 * 6 / np.abs(matrix).max())
    blocks = matrix.reshape(rows, -1, 16)
    scale = (np.abs(blocks).max(axis=2) / 6 * whole).astype(E4M3)
    real_scale = np.repeat(scale.astype(np.float32) / whole, 16, axis=1)
    codes = _fp4_codes(matrix / np.maximum(real_scale, 1e-30))
    tensors = {
        "weight_packed": (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8),
        "weight_scale": scale,
        "weight_global_scale": np.array([whole]),
    }
    return Made(tensors, FP4[codes] * real_scale, (2 * FP4[codes]).astype(np.int64))


def exponents_for(matrix: np.ndarray, block: int = 32) -> np.ndarray:
    """Biased exponents u8[..., blocks] with which blocks fit 4-bit floats."""
    largest = np.abs(matrix.reshape(*matrix.shape[:-1], -1, block)).max(axis=-1)
    return (np.floor(np.log2(largest)) - 2 + 127).astype(np.uint8)


def mxfp4_packed(matrix: np.ndarray, rng: np.random.Generator) -> Made:
    """``mxfp4-pack-quantized``."""
    scale = exponents_for(matrix)
    real_scale = np.repeat(np.exp2(scale.astype(np.float32) - 127), 32, axis=1).astype(np.float32)
    codes = _fp4_codes(matrix / real_scale)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
    tensors = {"weight_packed": packed, "weight_scale": scale}
    return Made(tensors, FP4[codes] * real_scale, (2 * FP4[codes]).astype(np.int64))


def mxfp4_stack(stack: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks, scales and real values of ``[experts, out, in]`` as gpt-oss stores it."""
    scale = exponents_for(stack)
    real_scale = np.repeat(np.exp2(scale.astype(np.float32) - 127), 32, axis=-1).astype(np.float32)
    codes = _fp4_codes(stack / real_scale)
    packed = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
    return packed.reshape(*scale.shape, 16), scale, FP4[codes] * real_scale


# ---- bitsandbytes ----


def bnb4(kind: str, block: int = 64, nested: bool = False) -> Encode:
    """nf4 or fp4 in flat blocks, with factors in single precision or nested."""
    table = NF4 if kind == "nf4" else BNB_FP4

    def encode(matrix: np.ndarray, rng: np.random.Generator) -> Made:
        flat = matrix.reshape(-1)
        blocks = np.concatenate([flat, np.zeros(-flat.size % block, np.float32)]).reshape(-1, block)
        factors = np.abs(blocks).max(axis=1)
        state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(matrix.shape)}
        tensors: Tensors = {"weight.absmax": factors, "weight.quant_map": table}
        if nested:
            offset = float(np.float32(factors.mean()))
            outer = np.concatenate([factors - np.float32(offset), np.zeros(-factors.size % 256, np.float32)]).reshape(
                -1, 256
            )
            most = np.abs(outer).max(axis=1)
            steps = np.sort(np.concatenate([np.linspace(-1, 1, 255), [0.001]])).astype(np.float32)
            places = np.abs((outer / most[:, None])[..., None] - steps).argmin(axis=-1).reshape(-1)[: factors.size]
            tensors["weight.absmax"] = places.astype(np.uint8)
            tensors["weight.nested_absmax"], tensors["weight.nested_quant_map"] = most, steps
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            factors = steps[places] * np.repeat(most, 256)[: factors.size] + np.float32(offset)
        codes = np.abs((blocks / factors[:, None])[..., None] - table).argmin(axis=-1)
        packed = codes.reshape(-1)[: flat.size]
        tensors["weight"] = (packed[::2] << 4 | packed[1::2]).astype(np.uint8)[:, None]
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        numbers = (table[codes] * factors[:, None]).reshape(-1)[: flat.size]
        return Made(tensors, numbers.reshape(matrix.shape).astype(np.float32))

    return encode


def bnb8(matrix: np.ndarray, rng: np.random.Generator) -> Made:
    """``LLM.int8()``."""
    scale = np.abs(matrix).max(axis=1)
    codes = np.rint(matrix * (127 / scale[:, None])).astype(np.int8)
    tensors = {"weight": codes, "SCB": scale, "weight_format": np.array(0, np.uint8)}
    return Made(tensors, codes.astype(np.float32) * (scale * np.float32(1 / 127))[:, None], codes)


# ---- cases ----


@dataclass(frozen=True)
class Case:
    """One way to store a checkpoint.

    Attributes:
        encode: of its matrices; where there are several, matrices take turns.
        config: ``quantization_config``; None for none.
        kept: the target holds every matrix as it is.
        bits: width of the codes that are kept.
    """

    encode: tuple[Encode, ...]
    config: dict[str, Any] | None
    kept: bool = False
    bits: int = 4


def _ct(form: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
_GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": True,
    "checkpoint_format": "gptq",
}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
_BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

CASES: dict[str, Case] = {
    "fp8-blocks": Case((fp8((128, 128)),), _FP8),
    "fp8-blocks-exponents": Case((fp8((128, 128), dtype=E8M0),), {**_FP8, "scale_fmt": "ue8m0"}),
    "fp8-blocks-bf16-named-scale": Case((fp8((128, 128), ("scale",), BF16),), _FP8),
    "fp8-rows": Case((fp8((1, 0), ("weight_scale",)),), {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    "fp8-whole-static": Case(
        (fp8((0, 0), ("weight_scale", "input_scale")),), {"quant_method": "fp8", "activation_scheme": "static"}
    ),
    "fp8-without-configuration": Case((fp8((128, 128)),), None),
    "ct-int4-groups": Case((packed_integers(4, 32),), _ct("pack-quantized", num_bits=4, group_size=32), True),
    "ct-int4-zeros": Case(
        (packed_integers(4, 64, False),), _ct("pack-quantized", num_bits=4, group_size=64, symmetric=False), True
    ),
    "ct-int4-rows": Case((packed_integers(4, 0),), _ct("pack-quantized", num_bits=4, strategy="channel"), True),
    "ct-int4-order": Case(
        (packed_integers(4, 32, order=True),), _ct("pack-quantized", num_bits=4, group_size=32, actorder="group")
    ),
    "ct-int3-groups": Case((packed_integers(3, 32),), _ct("pack-quantized", num_bits=3, group_size=32), True, 3),
    "ct-int8-packed": Case((packed_integers(8, 32),), _ct("pack-quantized", num_bits=8, group_size=32), True, 8),
    "ct-int8-rows": Case((byte_integers(0),), _ct("int-quantized", num_bits=8, strategy="channel"), True, 8),
    "ct-int8-zeros": Case((byte_integers(0, False),), _ct("int-quantized", num_bits=8, symmetric=False), True, 8),
    "ct-fp8-rows": Case((fp8((1, 0), ("weight_scale",), BF16),), _ct("float-quantized", num_bits=8, type="float")),
    "ct-mixed": Case(
        (packed_integers(4, 32), fp8((1, 0), ("weight_scale",), BF16)),
        _ct("mixed-precision", num_bits=4, group_size=32),
    ),
    "ct-nvfp4": Case((nvfp4,), _ct("nvfp4-pack-quantized", num_bits=4, group_size=16, type="float")),
    "ct-mxfp4": Case((mxfp4_packed,), _ct("mxfp4-pack-quantized", num_bits=4, group_size=32, type="float"), True, 8),
    "gptq-2": Case((gptq(2, 32),), {**_GPTQ, "bits": 2}, True, 2),
    "gptq-3": Case((gptq(3, 32),), {**_GPTQ, "bits": 3}, True, 3),
    "gptq-4": Case((gptq(4, 32),), _GPTQ, True),
    "gptq-8": Case((gptq(8, 64),), {**_GPTQ, "bits": 8, "group_size": 64}, True, 8),
    "gptq-4-zeros": Case((gptq(4, 32, False),), {**_GPTQ, "sym": False}, True),
    "gptq-4-order": Case((gptq(4, 32, order=True),), {**_GPTQ, "desc_act": True}),
    "gptq-4-newer": Case(
        (gptq(4, 32, False, newer=True),), {**_GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, True
    ),
    "gptq-without-configuration": Case((gptq(4, 32),), None, True),
    "gptq-newer-without-configuration": Case((gptq(4, 32, newer=True),), None, True),
    "awq": Case((awq(32),), _AWQ, True),
    "awq-rows": Case((awq(0),), {**_AWQ, "group_size": -1}, True),
    "bnb-nf4": Case((bnb4("nf4"),), _BNB),
    "bnb-nf4-nested": Case((bnb4("nf4", nested=True),), {**_BNB, "bnb_4bit_use_double_quant": True}),
    "bnb-fp4": Case((bnb4("fp4", 128),), {**_BNB, "bnb_4bit_quant_type": "fp4"}),
    "bnb-int8": Case((bnb8,), {"quant_method": "bitsandbytes", "load_in_8bit": True}, True, 8),
}
"""Checkpoints by name."""
