"""Weights of files made by others become the one form that is kept bit for bit, whatever stands before their use."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from frontends.onnx.load import load
from ir.base.diag import LadingError
from ir.graph.graph import Graph, Node
from ir.quant.stored_codes import NAME
from ir.quant.stored_weight import StoredWeight, storage_of
from ir.target.target import Target
from ir.tensor.rearranged import transposed
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from tests.passes.precision.quantized_models import BLOCK, BLOCKS, COLUMNS, ROWS, Model, after


def raised(model: onnx.ModelProto, options: str = "", bar: float = 1e-5) -> tuple[Graph, list]:
    """The graph after the pass, and what was said of it."""
    return after(model, f"raise-weights{options}", bar)


def user(graph: Graph, op: str) -> Node:
    (found,) = [node for node in graph.nodes if node.op == op]
    return found


def kept(graph: Graph, *, matmul: bool = True) -> StoredWeight:
    """The weight of the only product or look-up, which stands right before it and is kept as it was given."""
    node = user(graph, "MatMul" if matmul else "Gather")
    found = storage_of(node.operand(int(matmul)), matmul=matmul)
    assert found is not None and found.storage.method == NAME
    return found


def codes_of(seed: int, dtype: type = ml_dtypes.uint4) -> np.ndarray:
    """Codes ``[rows, columns]``."""
    low, high = (int(ml_dtypes.iinfo(dtype).min), int(ml_dtypes.iinfo(dtype).max))
    return np.random.default_rng(seed).integers(low, high + 1, (ROWS, COLUMNS)).astype(dtype)


def numbers(shape: tuple[int, ...], seed: int = 7, dtype: type = np.float32) -> np.ndarray:
    """Scales."""
    return np.random.default_rng(seed).uniform(0.01, 0.1, shape).astype(dtype)


CODES, SCALE = codes_of(0), numbers((ROWS, BLOCKS))
ZERO = np.random.default_rng(3).integers(0, 16, (ROWS, BLOCKS)).astype(ml_dtypes.uint4)


def transposed_blocks(m: Model) -> str:
    weight = m.op("DequantizeLinear", m.const(CODES), m.const(SCALE), m.const(ZERO), axis=1, block_size=BLOCK)
    return m.op("Transpose", weight, perm=[1, 0])


def codes_transposed_first(m: Model) -> str:
    # What onnxruntime cannot transpose at 4 bits it can at 8.
    parts = [m.op("Transpose", m.const(part)) for part in (CODES.astype(np.uint8), SCALE, ZERO.astype(np.uint8))]
    return m.op("DequantizeLinear", *parts, axis=0, block_size=BLOCK)


def cut_into_blocks(m: Model) -> str:
    parts = [CODES.reshape(ROWS, BLOCKS, BLOCK), SCALE[..., None], ZERO[..., None]]
    weight = m.op("DequantizeLinear", *map(m.const, parts), axis=2, block_size=BLOCK)
    flat = m.op("Reshape", weight, m.const(np.array([ROWS, COLUMNS])))
    return m.op("Transpose", flat)


def transposed_in_blocks(m: Model) -> str:
    parts = [CODES.reshape(ROWS, BLOCKS, BLOCK), SCALE[..., None], ZERO[..., None]]
    weight = m.op("DequantizeLinear", *map(m.const, parts), axis=-1, block_size=BLOCK)
    turned = m.op("Transpose", weight, perm=[1, 2, 0])
    return m.op("Reshape", turned, m.const(np.array([-1, ROWS])))


def half_scales(m: Model) -> str:
    weight = m.op("DequantizeLinear", m.const(CODES), m.const(SCALE.astype(np.float16)), m.const(ZERO), axis=1,
                  block_size=BLOCK)  # fmt: skip
    return m.op("Transpose", m.op("Cast", weight, to=TensorProto.FLOAT))


def widened_scales(m: Model) -> str:
    scale = m.op("Cast", m.const(SCALE.astype(np.float16)), to=TensorProto.FLOAT)
    weight = m.op("DequantizeLinear", m.const(CODES), scale, m.const(ZERO), axis=1, block_size=BLOCK)
    return m.op("Transpose", weight)


def with_an_axis_of_one(m: Model) -> str:
    parts = [part.T[None] for part in (CODES, SCALE, ZERO)]
    weight = m.op("DequantizeLinear", *map(m.const, parts), axis=1, block_size=BLOCK)
    return m.op("Squeeze", m.op("Identity", weight), m.const(np.array([0])))


def written_out(m: Model) -> str:
    parts = [CODES.astype(np.uint8).reshape(ROWS, BLOCKS, BLOCK), SCALE[..., None], ZERO.astype(np.float32)[..., None]]
    codes, scale, zero = map(m.const, parts)
    less = m.op("Sub", m.op("Cast", codes, to=TensorProto.FLOAT), zero)
    flat = m.op("Reshape", m.op("Mul", scale, less), m.const(np.array([ROWS, COLUMNS])))
    return m.op("Transpose", flat)


FORMS: dict[str, Callable[[Model], str]] = {
    made.__name__: made
    for made in (transposed_blocks, codes_transposed_first, cut_into_blocks, transposed_in_blocks, half_scales,
                 widened_scales, with_an_axis_of_one, written_out)
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_found_behind_transposes_reshapes_and_casts(form):
    model = Model()
    model.product(FORMS[form](model))
    # Only the model itself rounds the weights to half precision.
    graph, said = raised(model.made(), bar=1e-3 if form == "half_scales" else 1e-5)
    assert not said and [node.op for node in graph.nodes] == ["DequantizeLinear", "MatMul"]
    weight = kept(graph)
    half = 2 ** (weight.bits - 1)
    assert (weight.rows, weight.columns, weight.block) == (ROWS, COLUMNS, BLOCK)
    part = weight.quantized.rows(0, ROWS)
    np.testing.assert_array_equal(part.codes, CODES.astype(np.int16) - half)
    np.testing.assert_array_equal(part.zero, ZERO.astype(np.int16) - half)
    np.testing.assert_array_equal(part.scale, SCALE.astype(np.float16) if "scales" in form else SCALE)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("shape", [(), (1,), (ROWS,)])
def test_scales_of_rows_and_of_the_whole_matrix(dtype, shape):
    codes, scale = codes_of(1, dtype), numbers(shape)
    zero = np.random.default_rng(2).integers(3, 100, shape).astype(dtype)
    model = Model()
    weight = model.op("DequantizeLinear", model.const(codes), model.const(scale), model.const(zero), axis=0)
    model.product(model.op("Transpose", weight))
    graph, said = raised(model.made())
    weight, half = kept(graph), 128 if dtype is np.uint8 else 0
    assert not said and weight.block == COLUMNS
    part = weight.quantized.rows(5, 9)
    np.testing.assert_array_equal(part.codes, codes[5:9].astype(np.int16) - half)
    wanted = np.broadcast_to(scale, (ROWS,)), np.broadcast_to(zero.astype(np.int16), (ROWS,)) - half
    np.testing.assert_array_equal(part.scale[:, 0], wanted[0][5:9])
    np.testing.assert_array_equal(part.zero[:, 0], wanted[1][5:9])


def test_codes_that_are_scaled_behind_the_product_are_a_weight_too():
    codes, scale = codes_of(5, np.int8), numbers((ROWS,))
    model = Model()
    real = model.op("Transpose", model.op("Cast", model.const(codes), to=TensorProto.FLOAT))
    model.op("Mul", model.op("MatMul", "x", real), model.const(scale), name="y")
    model.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph, said = raised(model.made())
    assert (
        not said
        and kept(graph).bits == 8
        and [node.op for node in graph.nodes] == ["DequantizeLinear", "MatMul", "Mul"]
    )
    part = kept(graph).quantized.rows(0, ROWS)
    np.testing.assert_array_equal(part.codes, codes)
    assert (part.scale == 1).all() and part.zero is None


def test_what_is_in_the_form_already_is_left_alone():
    model = Model()
    parts = [model.const(part.T, name) for part, name in ((CODES, "codes"), (SCALE, "scale"), (ZERO, "zero"))]
    model.product(model.op("DequantizeLinear", *parts, axis=0, block_size=BLOCK, name="w"))
    graph, said = raised(model.made())
    assert not said and {"codes", "scale", "zero", "w"} <= {*graph.consts, user(graph, "DequantizeLinear").output.name}


@pytest.mark.parametrize(("dtype", "middle"), [(ml_dtypes.uint4, 8), (np.uint8, 128), (np.int8, 0)])
def test_zeros_that_say_nothing_are_left_out(dtype, middle):
    codes = codes_of(4, dtype)
    model = Model()
    parts = [model.const(part) for part in (codes.T, SCALE.T, np.full((BLOCKS, ROWS), middle).astype(dtype))]
    model.product(model.op("DequantizeLinear", *parts, axis=0, block_size=BLOCK))
    graph, _ = raised(model.made())
    weight = kept(graph)
    assert weight.storage.symmetric and weight.block == BLOCK
    part = weight.quantized.rows(0, ROWS)
    assert part.zero is None
    np.testing.assert_array_equal(part.codes, codes.astype(np.int16) - middle)


def test_unsigned_codes_without_zeros_count_from_zero():
    model = Model()
    model.product(model.op("DequantizeLinear", model.const(CODES.T), model.const(SCALE.T), axis=0, block_size=BLOCK))
    graph, _ = raised(model.made())
    part = kept(graph).quantized.rows(0, ROWS)
    assert (part.zero == -8).all()
    np.testing.assert_array_equal(part.codes, CODES.astype(np.int16) - 8)


def test_a_weight_that_two_products_read_is_raised_once():
    model = Model()
    weight = transposed_blocks(model)
    model.product(weight)
    model.product(weight, "again")
    graph, _ = raised(model.made())
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "MatMul", "MatMul"]


def test_vectors_in_codes_become_floats():
    made = np.random.default_rng(11)
    bias, scale = made.integers(-9999, 9999, ROWS).astype(np.int32), numbers((ROWS,))
    gain, zero = made.integers(0, 255, COLUMNS).astype(np.uint8), np.uint8(7)
    model = Model()
    scaled = model.op(
        "Mul", "x", model.op("DequantizeLinear", *map(model.const, (gain, np.float32(0.1), zero)), name="gain")
    )
    weight = model.op("Transpose", model.op("DequantizeLinear", model.const(CODES), model.const(SCALE), axis=1,
                                            block_size=BLOCK))  # fmt: skip
    added = model.op("DequantizeLinear", model.const(bias), model.const(scale), axis=0, name="bias")
    model.op("Add", model.op("MatMul", scaled, weight), added, name="y")
    model.outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    graph, said = raised(model.made())
    assert not said and [node.op for node in graph.nodes] == ["DequantizeLinear", "Mul", "MatMul", "Add"]
    np.testing.assert_array_equal(graph.value("bias").tensor.load(), bias.astype(np.float32) * scale)
    np.testing.assert_array_equal(graph.value("gain").tensor.load(), (gain.astype(np.float32) - 7) * np.float32(0.1))


# ---- tables ----


def test_a_table_whose_codes_are_the_logits_matrix_is_one_matrix_with_it():
    model = Model()
    flat = [model.const(part) for part in (CODES.reshape(ROWS, BLOCKS, BLOCK), SCALE[..., None], ZERO[..., None])]
    table = model.op("DequantizeLinear", *flat, axis=2, block_size=BLOCK)
    table = model.op("Reshape", table, model.const(np.array([ROWS, COLUMNS])))
    model.look_up(table)
    model.product(model.op("Transpose", table))
    graph, _ = raised(model.made())
    assert kept(graph).quantized is kept(graph, matmul=False).quantized


def test_copies_of_one_matrix_are_found_by_what_they_hold():
    model = Model()
    model.look_up(model.op("DequantizeLinear", *map(model.const, (CODES, SCALE, ZERO)), axis=1, block_size=BLOCK))
    copies = [model.const(part.T) for part in (CODES, SCALE, ZERO)]
    model.product(model.op("DequantizeLinear", *copies, axis=0, block_size=BLOCK))
    graph, _ = raised(model.made())
    assert kept(graph).quantized is kept(graph, matmul=False).quantized


def test_a_matrix_that_differs_in_one_code_is_another():
    other = CODES.astype(np.int16)
    other[-1, -1] ^= 1
    model = Model()
    model.look_up(model.op("DequantizeLinear", *map(model.const, (CODES, SCALE, ZERO)), axis=1, block_size=BLOCK))
    copies = [model.const(part.T) for part in (other.astype(ml_dtypes.uint4), SCALE, ZERO)]
    model.product(model.op("DequantizeLinear", *copies, axis=0, block_size=BLOCK))
    graph, _ = raised(model.made())
    assert kept(graph).quantized is not kept(graph, matmul=False).quantized


def test_float_copies_of_one_matrix_are_found_too():
    table = np.random.default_rng(5).normal(0, 1, (ROWS, COLUMNS)).astype(np.float32)
    model = Model()
    model.look_up(model.const(table))
    model.product(model.const(np.ascontiguousarray(table.T)))
    graph, _ = raised(model.made())
    head, rows = user(graph, "MatMul").operand(1), user(graph, "Gather").operand(0)
    assert transposed(head.tensor).fingerprint() == rows.tensor.fingerprint()


class OddRows(Target):
    """Reads rows of 4 bits from tables with an even number of rows only."""

    def reads_rows(self, bits: int, rows: int) -> bool:
        return bits in (4, 8) and not (bits == 4 and rows % 2)


def test_rows_that_the_target_cannot_read_become_wider_codes_and_so_does_the_matrix_that_is_the_same():
    codes, scale = CODES[:-1], SCALE[:-1]
    model = Model()
    model.look_up(model.op("DequantizeLinear", model.const(codes), model.const(scale), axis=1, block_size=BLOCK))
    copies = [model.const(part.T) for part in (codes, scale)]
    model.product(model.op("DequantizeLinear", *copies, axis=0, block_size=BLOCK))
    graph = load(model.made())
    report = PassManager("infer-types,raise-weights").run(graph, PassContext(OddRows()))
    (note,) = report.all_diagnostics()
    assert note.code == "Q464" and note.severity == "note" and "8 bits instead of 4" in note.message
    table = kept(graph, matmul=False)
    assert table.bits == 8 and kept(graph).quantized is table.quantized
    real = codes.astype(np.float32) * np.repeat(scale, BLOCK, 1)
    np.testing.assert_allclose(table.dequantized_rows(0, ROWS - 1), real, rtol=0, atol=1e-5)


def test_blocks_that_do_not_divide_a_row_are_cut_where_that_keeps_the_codes():
    model = Model()
    parts = [model.const(part) for part in (CODES.T, numbers((2, ROWS)))]
    model.product(model.op("DequantizeLinear", *parts, axis=0, block_size=48))
    graph, said = raised(model.made())
    assert not said and kept(graph).block == 16
    np.testing.assert_array_equal(kept(graph).quantized.rows(0, ROWS).codes, CODES.astype(np.int16) - 8)


# ---- what is not kept ----


@pytest.mark.parametrize(
    ("shape", "attrs", "reason"),
    [
        ((COLUMNS,), {"axis": 0}, "shared by several rows"),
        ((COLUMNS, 3), {"axis": 1, "block_size": 8}, "shared by several rows"),
        ((3, ROWS), {"axis": 0, "block_size": 30}, "blocks do not divide"),
        pytest.param((COLUMNS // 2, ROWS), {"axis": 0, "block_size": 2}, "blocks of 2", marks=pytest.mark.mnn),
    ],
)
def test_scales_that_no_form_has_room_for_are_decoded_and_the_reason_is_told(shape, attrs, reason):
    codes, zero = codes_of(6, np.uint8), np.random.default_rng(8).integers(0, 255, shape).astype(np.uint8)
    model = Model()
    parts = [model.const(part) for part in (np.ascontiguousarray(codes.T), numbers(shape), zero)]
    model.product(model.op("DequantizeLinear", *parts, name="layers.0.weight", **attrs))
    graph, said = raised(model.made())
    (warning,) = said
    assert warning.code == "Q466" and reason in warning.message and "layers.0.weight" in warning.where
    weight = user(graph, "MatMul").operand(1)
    assert weight.is_const and weight.name == "layers.0.weight"


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int16, np.uint16])
def test_codes_that_are_no_integers_of_at_most_8_bits_are_decoded(dtype):
    spread = 1 if np.dtype(dtype).itemsize == 1 else 9000
    codes = (np.random.default_rng(9).uniform(0, 3, (ROWS, COLUMNS)) * spread).astype(dtype)
    model = Model()
    weight = model.op("DequantizeLinear", model.const(codes), model.const(numbers((ROWS,))), axis=0)
    model.product(model.op("Transpose", weight))
    graph, said = raised(model.made())
    weight = user(graph, "MatMul").operand(1)
    assert [item.code for item in said] == ["Q466"] and "no integers" in said[0].message
    np.testing.assert_array_equal(weight.tensor.load(), (codes.astype(np.float32) * numbers((ROWS,))[:, None]).T)


def test_weights_that_are_named_are_decoded_to_be_stored_anew():
    model = Model()
    model.product(transposed_blocks(model))
    graph, said = raised(model.made(), "{requantize=[*]}")
    weight = user(graph, "MatMul").operand(1)
    assert not said and weight.is_const and len(graph.nodes) == 1
    real = (CODES.astype(np.float32) - np.repeat(ZERO.astype(np.float32), BLOCK, 1)) * np.repeat(SCALE, BLOCK, 1)
    np.testing.assert_array_equal(weight.tensor.load(), real.T)
    for start, stop in ((0, 1), (7, 30), (63, 64)):
        np.testing.assert_array_equal(weight.tensor.rows(start, stop), real.T[start:stop])


def test_a_pattern_that_matches_no_quantized_weight_is_an_error():
    model = Model()
    model.product(model.op("Transpose", model.op("DequantizeLinear", model.const(CODES), model.const(SCALE), axis=1,
                                                 block_size=BLOCK), name="layers.0.weight"))  # fmt: skip
    with pytest.raises(LadingError, match=r"Q412.*'other'"):
        raised(model.made(), "{requantize=[other]}")
    with pytest.raises(LadingError, match="Q411"):
        raised(model.made(), '{requantize=["re:("]}')


def test_graphs_of_our_own_and_computed_matrices_are_left_alone():
    model = Model()
    model.op("Transpose", "x", name="turned")
    model.product("turned")
    transposed_blocks(model)
    graph, _ = raised(model.made())
    assert "Transpose" in [node.op for node in graph.nodes]
    own = Model()
    own.product(transposed_blocks(own))
    graph = load(own.made())
    graph.foreign = False
    PassManager("infer-types,raise-weights").run(graph)
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "Transpose", "MatMul"]
