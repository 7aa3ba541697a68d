"""Quantization: the fast kernels equal a plain reading of their documented formula, bit for bit."""

from __future__ import annotations

import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir.base.diag import LadingError
from ir.base.types import DTYPES, F32, TensorType
from ir.quant import weight as module
from ir.quant.storage import Storage, fit_block
from ir.quant.weight import (
    METHODS,
    Blocks,
    NotFinite,
    QuantizedWeight,
    real_zero,
    shared_quantized,
)
from ir.tensor.base import same_tensor
from ir.tensor.files import FileTensor
from ir.tensor.inline import InlineTensor, bytes_of
from ir.tensor.rearranged import transposed
from ir.tensor.recipes import RECIPES


def packing():
    """How MNN stores codes; needed by tests with the mark alone."""
    from backends.mnn.write import packing as found

    return found


f32 = np.float32
SOURCES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
MODES = [(True, "int"), (False, "int"), (False, "float")]


# --- reference --------------------------------------------------------------------------------------------------------


def reference(matrix: np.ndarray, storage: Storage) -> Blocks:
    """The formula of `RoundToNearest`, one block at a time, one float32 operation at a time."""
    rows, length = matrix.shape
    block = storage.block or length
    codes = np.zeros((rows, length), np.int8)
    scale = np.zeros((rows, length // block), f32)
    zero = np.zeros(scale.shape, np.int8 if storage.zero == "int" else f32)
    for row in range(rows):
        for index in range(length // block):
            part = slice(index * block, (index + 1) * block)
            values = matrix[row, part].astype(f32)
            chosen, zero[row, index], shift = numbers_of_block(values.min(), values.max(), storage)
            scale[row, index] = chosen
            inverse = f32(1) / chosen
            for place, value in enumerate(values):
                code = int(np.trunc(f32(f32(value * inverse) + shift)))
                codes[row, part.start + place] = min(max(code, 0), 2**storage.bits - 1) - 2 ** (storage.bits - 1)
    return Blocks(codes, scale, None if storage.symmetric else zero)


def stored(value: f32, storage: Storage) -> f32:
    return f32(np.float16(value)) if storage.scale == "f16" else f32(value)


def numbers_of_block(lo: f32, hi: f32, storage: Storage) -> tuple[f32, float, f32]:
    """Scale, zero and shift of one block from its extremes."""
    half, span = f32(2 ** (storage.bits - 1)), f32(2**storage.bits - 1)
    tiny = f32(2.0**-24 if storage.scale == "f16" else 2.0**-126)
    if storage.symmetric or storage.zero == "int":
        lo, hi = min(lo, f32(0)), max(hi, f32(0))
    if storage.symmetric:
        scale = max(max(hi, -lo) / half, min(hi, -lo) / (half - f32(0.5)))
        scale = hi / (half - f32(1)) if hi == -lo else scale
        scale = max(stored(scale, storage), tiny)
        return (-scale if hi > -lo else scale), 0, half + f32(0.5)
    scale = f32(hi / span) - f32(lo / span)
    if storage.zero == "int":
        scale = hi / (half - f32(1)) if hi == -lo else scale
        scale = max(stored(scale, storage), tiny)
        zero = f32(np.clip(np.rint(-half - lo * f32(f32(1) / scale)), -half, half - f32(1)))
        return scale, int(zero), zero + (half + f32(0.5))
    scale = max(stored(max(scale, max(abs(lo), abs(hi)) * f32(2.0**-18)), storage), tiny)
    zero = stored(min(f32(f32(lo / half) + scale), np.finfo(f32).max / half) * half, storage)
    return scale, zero, f32(half + f32(0.5)) - f32(zero * f32(f32(1) / scale))


def assert_equal(found: Blocks, expected: Blocks) -> None:
    assert found.codes.dtype == np.int8 and found.scale.dtype == f32
    assert found.scale.tobytes() == expected.scale.tobytes()
    assert (found.zero is None) == (expected.zero is None)
    if expected.zero is not None:
        assert found.zero.dtype == expected.zero.dtype
        assert np.array_equal(found.zero, expected.zero)
    assert np.array_equal(found.codes, expected.codes)


def weight(matrix: np.ndarray, **how) -> QuantizedWeight:
    return QuantizedWeight(InlineTensor(matrix), Storage(**{"bits": 4, "block": 64, **how}))


def gaussian(shape, kind=np.float32, seed=0, scale=0.02) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(kind)


def code_of(call) -> str:
    with pytest.raises(LadingError) as caught:
        call()
    return caught.value.code


# --- kernels against the reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("symmetric", "zero"), MODES, ids=["symmetric", "int", "float"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_kernels_equal_the_formula(source, symmetric, zero, bits):
    for block, length in ((64, 128), (32, 96), (4, 12), (1, 3), (7, 21), (0, 9), (0, 520), (512, 1024)):
        matrix = gaussian((3, length), SOURCES[source], seed=bits * length)
        storage = Storage(bits=bits, block=block, symmetric=symmetric, zero=zero)
        assert_equal(QuantizedWeight(InlineTensor(matrix), storage).rows(0, 3), reference(matrix, storage))


EXTREMES = [0.0, -0.0, 1.0, -1.0, 0.02, -0.03, 1e-40, -1e-45, 2e-38, 6e-8, -6e-5, 65504.0, -1e4, 0.5, 7.0, -8.0]
HUGE = {"f16": [], "bf16": [3.38e38, -3.38e38, 1e38], "f32": [3.4028235e38, -3.4028235e38, 3.4e38]}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_kernels_equal_the_formula_on_hostile_numbers(data):
    kind = data.draw(st.sampled_from(sorted(SOURCES)))
    bits = data.draw(st.integers(2, 8))
    symmetric, zero = data.draw(st.sampled_from(MODES))
    scale = data.draw(st.sampled_from(["f32", "f16"]))
    block = data.draw(st.sampled_from([1, 2, 4, 8, 16]))
    blocks = data.draw(st.integers(1, 3))
    pool = EXTREMES + (HUGE[kind] if scale == "f32" else [])
    number = st.sampled_from(pool) | st.floats(-4, 4, width=16)
    numbers = data.draw(st.lists(number, min_size=2 * blocks * block, max_size=2 * blocks * block))
    matrix = np.array(numbers, f32).reshape(2, -1).astype(SOURCES[kind])
    if scale == "f16":
        matrix = np.clip(matrix.astype(f32), -30000, 30000).astype(SOURCES[kind])
    storage = Storage(bits=bits, block=block, symmetric=symmetric, zero=zero, scale=scale)
    found = QuantizedWeight(InlineTensor(matrix), storage).rows(0, 2)
    assert_equal(found, reference(matrix, storage))
    assert np.isfinite(found.scale).all() and (found.scale != 0).all()
    assert storage.low <= found.codes.min() and found.codes.max() <= storage.high
    if scale == "f32":
        assert_within_half_a_step(matrix.astype(np.float64), found, block)


def assert_within_half_a_step(matrix: np.ndarray, found: Blocks, block: int) -> None:
    scale = np.repeat(found.scale.astype(np.float64), block, axis=1)
    zero = real_zero(found.scale, found.zero)
    back = found.codes * scale + (0 if zero is None else np.repeat(zero.astype(np.float64), block, axis=1))
    assert (np.abs(back - matrix) <= np.abs(scale) * 0.54 + np.abs(matrix) * 1e-6).all()


@pytest.mark.parametrize(("symmetric", "zero"), MODES, ids=["symmetric", "int", "float"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_constant_binary_and_ternary_blocks_are_exact(bits, symmetric, zero):
    rng = np.random.default_rng(bits)
    signs = rng.choice([-1.0, 1.0], (4, 32))
    signs[:, :2] = [-1, 1]
    ternary = np.where(rng.random((4, 32)) < 0.3, 0.0, signs)
    ternary[:, :2] = [-1, 1]
    one = np.full((4, 32), 0.75)
    cases = {"zero": 0 * one, "up": one, "down": -one, "binary": signs * one}
    if zero == "int":
        cases["ternary"] = ternary * one
    for name, matrix in cases.items():
        back = weight(matrix.astype(f32), bits=bits, block=16, symmetric=symmetric, zero=zero).dequantized().load()
        assert np.allclose(back, matrix, rtol=3e-6, atol=0), name


def test_symmetric_scales_beat_the_plain_maximum():
    heavy = np.random.default_rng(1).standard_t(5, (256, 512)).astype(f32)
    for name, matrix in {"gaussian": gaussian((256, 512)), "heavy tails": heavy}.items():
        back = weight(matrix, bits=4, block=64, symmetric=True).dequantized().load()
        largest = np.abs(matrix.reshape(256, 8, 64)).max(axis=2, keepdims=True) / 7
        plain = (np.rint(matrix.reshape(256, 8, 64) / largest) * largest).reshape(256, 512)
        assert ((back - matrix) ** 2).mean() < 0.8 * ((plain - matrix) ** 2).mean(), name


def test_half_precision_scales_are_rounded_before_the_codes_are_chosen():
    found = weight(gaussian((8, 128)), bits=8, block=32, zero="float", scale="f16").rows(0, 8)
    assert np.array_equal(found.scale, found.scale.astype(np.float16).astype(f32))
    assert np.array_equal(found.zero, found.zero.astype(np.float16).astype(f32))


# --- independence of pieces and threads -------------------------------------------------------------------------------


@pytest.mark.mnn
@pytest.mark.parametrize(("symmetric", "zero"), MODES, ids=["symmetric", "int", "float"])
def test_pieces_and_threads_do_not_change_a_byte(monkeypatch, symmetric, zero):
    matrix = gaussian((64, 192), ml_dtypes.bfloat16)
    quantized = weight(matrix, bits=3, block=48, symmetric=symmetric, zero=zero)
    whole = quantized.rows(0, 64)
    packed, alpha = packing().quantize_pack(quantized, 0, 64)
    monkeypatch.setattr(module, "PIECE_WEIGHTS", 1000)
    assert_equal(quantized.rows(0, 64), whole)
    assert_equal(quantized.rows(13, 14), Blocks(*[None if part is None else part[13:14] for part in whole]))
    step = packing().row_alignment(3, 192) * 4
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def work(start: int) -> None:
        found[start] = packing().quantize_pack(quantized, start, start + step)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 64, step)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.concatenate([found[start][0] for start in sorted(found)]).tobytes() == packed.tobytes()
    assert np.concatenate([found[start][1] for start in sorted(found)]).tobytes() == alpha.tobytes()


def test_inputs_need_not_be_contiguous_or_aligned():
    matrix = gaussian((64, 40))
    expected = weight(np.ascontiguousarray(matrix.T), bits=4, block=32).rows(0, 40)
    assert_equal(QuantizedWeight(transposed(InlineTensor(matrix)), Storage(bits=4, block=32)).rows(0, 40), expected)
    raw = np.empty(matrix.nbytes + 1, np.uint8)
    odd = raw[1:].view(f32).reshape(40, 64)
    odd[:] = matrix.T
    assert_equal(weight(odd, bits=4, block=32).rows(0, 40), expected)


@pytest.mark.mnn
def test_empty_matrices():
    for shape in ((0, 64), (4, 0)):
        quantized = weight(np.zeros(shape, f32), bits=4, block=0)
        assert quantized.rows(0, shape[0]).codes.shape == shape
        assert packing().quantize_pack(quantized, 0, shape[0])[0].size == 0


# --- the lazy recipe --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("symmetric", "zero"), MODES, ids=["symmetric", "int", "float"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_parts_are_tensors_of_one_evaluation(bits, symmetric, zero):
    quantized = weight(gaussian((6, 96)), bits=bits, block=32, symmetric=symmetric, zero=zero)
    whole = quantized.rows(0, 6)
    assert quantized.codes.type == TensorType(DTYPES[f"i{bits}"], (6, 96))
    assert quantized.scale.type == TensorType(F32, (6, 3))
    assert np.array_equal(quantized.codes.load().astype(np.int8), whole.codes)
    assert np.array_equal(quantized.codes.rows(2, 4).astype(np.int8), whole.codes[2:4])
    assert np.array_equal(quantized.scale.load(), whole.scale)
    parts = [quantized.codes, quantized.scale, quantized.dequantized()]
    if symmetric:
        assert quantized.zero_point is None
    else:
        kind = DTYPES[f"i{bits}"] if zero == "int" else F32
        assert quantized.zero_point.type == TensorType(kind, (6, 3))
        assert np.array_equal(quantized.zero_point.load().astype(f32), whole.zero.astype(f32))
        parts.append(quantized.zero_point)
    assert all(part.quantized is quantized for part in parts)


def test_dequantized_is_what_the_runtime_computes():
    quantized = weight(gaussian((5, 64)), bits=4, block=16)
    codes, scale, zero = quantized.rows(0, 5)
    expected = np.zeros((5, 64), f32)
    for row in range(5):
        for column in range(64):
            step, point = scale[row, column // 16], zero[row, column // 16]
            expected[row, column] = f32(f32(codes[row, column]) * step) + f32(-f32(f32(point) * step))
    assert quantized.dequantized().load().tobytes() == expected.tobytes()
    assert quantized.dequantized().rows(3, 5).tobytes() == expected[3:].tobytes()


def test_parts_are_rebuilt_with_one_parent():
    quantized = weight(gaussian((4, 64)), bits=4, block=32, zero="float")
    again = []
    for part in (quantized.codes, quantized.scale, quantized.zero_point, quantized.dequantized()):
        name, (source,), kwargs = part.recipe()
        source_name, args, source_kwargs = source.recipe()
        rebuilt = RECIPES[name](RECIPES[source_name](*args, **source_kwargs), **kwargs)
        assert same_tensor(rebuilt, part)
        assert same_tensor(pickle.loads(pickle.dumps(part)), part)
        assert rebuilt.load().tobytes() == part.load().tobytes()
        again.append(rebuilt)
    assert len({id(part.quantized) for part in again}) == 1
    assert again[0].quantized is not quantized
    assert not same_tensor(quantized.codes, quantized.scale)
    assert not same_tensor(
        quantized.codes, QuantizedWeight(quantized.source, Storage(bits=4, block=16, zero="float")).codes
    )
    assert pickle.loads(pickle.dumps(quantized)).storage == quantized.storage


def test_equal_quantizations_are_shared_while_they_live():
    matrix = gaussian((4, 64))
    first = shared_quantized(InlineTensor(matrix), Storage(bits=4, block=64))
    assert shared_quantized(InlineTensor(matrix.copy()), Storage(bits=4, block=64)) is first
    assert shared_quantized(InlineTensor(matrix), Storage(bits=8, block=64)) is not first


def test_a_symmetric_weight_has_no_zero_point_to_rebuild():
    with pytest.raises(LadingError, match="Q400"):
        RECIPES["quantized_zero_point"](InlineTensor(gaussian((4, 64))), bits=4, symmetric=True)


def test_from_a_file_in_any_float_type(tmp_path):
    for name in ("f8e4m3fn", "f64"):
        dtype = DTYPES[name]
        matrix = gaussian((4, 64), scale=1.0).astype(dtype.numpy)
        (tmp_path / name).write_bytes(bytes_of(matrix, dtype))
        quantized = QuantizedWeight(
            FileTensor(tmp_path / name, 0, TensorType(dtype, (4, 64))), Storage(bits=8, block=32)
        )
        assert_equal(quantized.rows(0, 4), reference(matrix.astype(f32), quantized.storage))


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize(("symmetric", "zero"), MODES, ids=["symmetric", "int", "float"])
def test_numbers_that_are_not_finite_are_located(tmp_path, monkeypatch, source, bad, symmetric, zero):
    monkeypatch.setattr(module, "PIECE_WEIGHTS", 128)
    for block, width in ((16, 64), (0, 640)):
        matrix = gaussian((9, width), SOURCES[source])
        matrix[5, 33] = bad
        matrix[7, 1] = np.nan
        path = tmp_path / f"{width}.bin"
        path.write_bytes(matrix.tobytes())
        file = FileTensor(path, 0, TensorType(DTYPES[source], matrix.shape), "model.up.weight")
        quantized = QuantizedWeight(file, Storage(bits=4, block=block, symmetric=symmetric, zero=zero))
        with pytest.raises(LadingError) as caught:
            quantized.codes.load()
        assert caught.value.code == "Q402"
        assert "row 5 " in str(caught.value) and "model.up.weight" in str(caught.value)
        assert quantized.rows(0, 5).codes.shape == (5, width)


def test_scales_beyond_half_precision_are_refused():
    matrix = np.zeros((4, 32), f32)
    matrix[2, 3] = 1e9
    for symmetric, zero in MODES:
        quantized = weight(matrix, bits=4, block=32, symmetric=symmetric, zero=zero, scale="f16")
        with pytest.raises(LadingError, match="row 2 ") as caught:
            quantized.rows(0, 4)
        assert caught.value.code == "Q403"


def test_bad_descriptions():
    base = InlineTensor(gaussian((4, 60)))
    assert code_of(lambda: Storage(bits=1)) == "Q400"
    assert code_of(lambda: Storage(bits=9)) == "Q400"
    assert code_of(lambda: QuantizedWeight(base, Storage(bits=16))) == "Q400"
    assert code_of(lambda: Storage(bits=4, block=-1)) == "Q400"
    assert code_of(lambda: Storage(bits=4, zero="none", block=64)) == "Q400"
    assert code_of(lambda: Storage(bits=4, scale="bf16", block=64)) == "Q400"
    assert code_of(lambda: QuantizedWeight(base, Storage(bits=4, block=64))) == "Q401"
    assert code_of(lambda: QuantizedWeight(base, Storage(method="rnt", block=20, bits=4))) == "Q404"
    assert code_of(lambda: QuantizedWeight(InlineTensor(gaussian((4,))), Storage(bits=4, block=0))) == "Q405"
    assert code_of(lambda: QuantizedWeight(InlineTensor(np.zeros((4, 4), np.int8)), Storage(bits=4, block=0))) == "Q405"
    with pytest.raises(LadingError, match="use block=4") as caught:
        QuantizedWeight(base, Storage(bits=4, block=64))
    assert caught.value.diagnostics[0].where == base.loc
    with pytest.raises(LadingError, match="did you mean 'rtn'"):
        QuantizedWeight(base, Storage(method="rnt", block=20, bits=4))
    with pytest.raises(IndexError):
        list(weight(gaussian((4, 64))).pieces(2, 5))


def test_fit_block():
    wanted = {(896, 64): 64, (4864, 128): 128, (896, 100): 64, (160, 64): 32, (144, 64): 16, (24, 64): 8, (60, 64): 4}
    wanted |= {(59, 64): 0, (64, 0): 0, (64, 3): 0, (64, 20): 16, (64, 1000): 64, (0, 64): 0, (640, 640): 640}
    assert {case: fit_block(*case) for case in wanted} == wanted


@given(st.integers(0, 5000), st.integers(0, 600))
def test_fitted_blocks_divide(length, wanted):
    block = fit_block(length, wanted)
    assert block <= wanted
    assert block == 0 or length % block == 0


def test_methods_are_open():
    class Signs:
        name = "signs-for-test"
        accepts = frozenset()
        needs = "nothing"
        slow = False
        version = 1

        def quantize(self, rows, storage, scratch, moments):
            assert moments is None
            assert rows.dtype == f32
            if not np.isfinite(rows).all():
                raise NotFinite(int(np.argmin(np.isfinite(rows).all(axis=1))))
            scale = np.abs(rows).mean(axis=1, keepdims=True)
            return Blocks(np.sign(rows).astype(np.int8), scale, None)

    method = Signs()
    METHODS.add(method.name, method)
    try:
        matrix = gaussian((6, 8), ml_dtypes.bfloat16)
        quantized = weight(matrix, bits=2, block=0, symmetric=True, method="signs-for-test")
        assert np.array_equal(quantized.codes.load().astype(f32), np.sign(matrix.astype(f32)))
        matrix[4, 4] = np.nan
        with pytest.raises(LadingError, match="row 4"):
            weight(matrix, bits=2, block=0, symmetric=True, method="signs-for-test").rows(1, 6)
        with pytest.raises(LadingError, match="claimed"):
            METHODS.add(Signs().name, Signs())
    finally:
        METHODS.remove("signs-for-test")


# --- MNN's storage ----------------------------------------------------------------------------------------------------


def unpacked(data: bytes, bits: int, count: int) -> list[int]:
    """Codes from MNN's stream, read as one long binary number."""
    text = "".join(f"{byte:08b}" for byte in data)
    return [int(text[place * bits : (place + 1) * bits], 2) - 2 ** (bits - 1) for place in range(count)]


@pytest.mark.mnn
@given(st.integers(2, 8), st.integers(0, 70), st.integers(0, 10**6))
def test_codes_are_one_stream_of_bits(bits, count, seed):
    codes = np.random.default_rng(seed).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), count).astype(np.int8)
    packed = packing().pack_codes(codes, bits)
    assert packed.size == packing().packed_bytes(count, bits) == -(-count * bits // 8)
    assert unpacked(packed.tobytes(), bits, count) == codes.tolist()
    unused = packed.size * 8 - count * bits
    assert unused == 0 or packed[-1] & ((1 << unused) - 1) == 0


@pytest.mark.mnn
def test_four_bit_codes_start_with_the_high_nibble():
    assert packing().pack_codes(np.array([[-8, 7], [0, -1]], np.int8), 4).tobytes() == b"\x0f\x87"
    assert packing().pack_codes(np.array([-128, 127], np.int8), 8).tobytes() == b"\x00\xff"
    assert packing().pack_codes(np.array([3, -4, 0], np.int8), 3).tobytes() == b"\xe2\x00"


@pytest.mark.mnn
def test_packing_writes_into_a_given_buffer_only_if_it_fits():
    out = np.empty(4, np.uint8)
    assert packing().pack_codes(np.zeros(8, np.int8), 4, out) is out
    for wrong in (np.empty(5, np.uint8), np.empty(4, np.int8)):
        with pytest.raises(ValueError, match="need uint8"):
            packing().pack_codes(np.zeros(8, np.int8), 4, wrong)
    with pytest.raises(ValueError, match="need uint8"):
        packing().quantize_pack(weight(gaussian((2, 64))), 0, 2, np.empty(5, np.uint8))


@pytest.mark.mnn
@given(st.integers(2, 8), st.integers(1, 200))
def test_aligned_rows_fill_whole_bytes(bits, features):
    rows = packing().row_alignment(bits, features)
    assert rows * bits * features % 8 == 0
    assert all(fewer * bits * features % 8 for fewer in range(1, rows))


@pytest.mark.mnn
@pytest.mark.parametrize("bits", range(2, 9))
def test_quantize_pack_equals_its_parts(monkeypatch, bits):
    monkeypatch.setattr(module, "PIECE_WEIGHTS", 64)
    quantized = weight(gaussian((19, 15)), bits=bits, block=5)
    codes, scale, zero = quantized.rows(0, 19)
    packed, alpha = packing().quantize_pack(quantized, 0, 19)
    assert unpacked(packed.tobytes(), bits, codes.size) == codes.reshape(-1).tolist()
    assert alpha.shape == (19, 3, 2) and alpha.dtype == f32
    assert np.array_equal(alpha[..., 1], scale)
    assert np.array_equal(alpha[..., 0], -(zero.astype(f32) * scale))
    low = packing().row_alignment(bits, 15)
    part, _ = packing().quantize_pack(quantized, low, 19)
    assert part.tobytes() == packed.tobytes()[low * 15 * bits // 8 :]


@pytest.mark.mnn
def test_alpha_layouts():
    scale = np.array([[0.5, 2.0]], f32)
    assert packing().pack_alpha(scale, None).tolist() == [[0.5, 2.0]]
    assert packing().pack_alpha(scale, np.array([[-3, 4]], np.int8)).tolist() == [[[1.5, 0.5], [-8.0, 2.0]]]
    assert packing().pack_alpha(scale, np.array([[0.25, -1]], f32)).tolist() == [[[0.25, 0.5], [-1.0, 2.0]]]
    assert packing().pack_alpha(scale, None, half=True).dtype == np.float16
    assert code_of(lambda: packing().pack_alpha(scale * f32(1e5), None, half=True)) == "Q403"
    symmetric = weight(gaussian((3, 64)), bits=8, block=32, symmetric=True)
    _, alpha = packing().quantize_pack(symmetric, 0, 3, half=True)
    assert alpha.shape == (3, 2) and alpha.dtype == np.float16
