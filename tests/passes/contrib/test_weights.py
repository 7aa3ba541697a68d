"""Weights that onnxruntime stores as packed codes become blocked dequantizations, with codes and scales as they are."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from frontends.onnx.load import load
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.quant.stored_weight import StoredWeight, storage_of
from ir.tensor.inline import InlineTensor
from ir.tensor.packed import code_rows
from ir.text.parser import parse
from ir.text.printer import print_graph
from tests.support.contrib.one_node import contrib, expanded, model_of, same

RNG = np.random.default_rng(5)


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as bytes, the lowest bits first; a row ends with its last byte."""
    each = 8 // bits
    rows = np.pad(codes, ((0, 0), (0, -codes.shape[1] % each))).reshape(len(codes), -1, each).astype(np.uint8)
    return sum(rows[..., place] << (place * bits) for place in range(each)).astype(np.uint8)


class Packed:
    """A random weight ``[rows, columns]`` as MatMulNBits holds it."""

    def __init__(self, rows: int, columns: int, block: int, bits: int) -> None:
        self.bits, self.block = bits, block
        blocks = -(-columns // block)
        self.codes = RNG.integers(0, 1 << bits, (rows, blocks * block)).astype(np.uint8)
        self.codes[:, columns:] = 1 << (bits - 1)
        self.scales = RNG.uniform(0.01, 0.2, (rows, blocks)).astype(np.float32)
        self.zeros = RNG.integers(0, 1 << bits, (rows, blocks)).astype(np.uint8)
        self.attrs = {"K": columns, "N": rows, "block_size": block, "bits": bits}
        self.operand = packed(self.codes, bits).reshape(rows, blocks, -1)

    def floats(self, zeros: np.ndarray | float) -> np.ndarray:
        """What it is in numbers."""
        spread = lambda part: np.repeat(part, self.block, axis=1)  # noqa: E731
        real = (self.codes.astype(np.float32) - (spread(zeros) if isinstance(zeros, np.ndarray) else zeros)) * spread(
            self.scales
        )
        return real[:, : self.attrs["K"]].astype(np.float32)


def weight_of(graph: Graph) -> StoredWeight:
    """The weight that the product of a graph multiplies by."""
    (node,) = [node for node in graph.nodes if node.op == "MatMul"]
    found = storage_of(node.inputs[1], matmul=True)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("bits", "zeros"),
    # onnxruntime takes no 8 bits with zeros that are floats.
    [(bits, zeros) for bits in (2, 4, 8) for zeros in ("none", "packed", "float") if (bits, zeros) != (8, "float")],
)
@pytest.mark.parametrize("flat", [False, True], ids=["by rows", "flat"])
def test_products_by_packed_codes(bits, zeros, flat):
    w = Packed(6, 128, 32, bits)
    constants = {"w": w.operand, "s": w.scales}
    if zeros == "packed":
        constants["z"] = packed(w.zeros, bits)
    elif zeros == "float":
        constants["z"] = w.zeros.astype(np.float32)
    if flat:
        constants |= {name: constants[name].reshape(-1) for name in constants if name != "w"}
    names = ["x", "w", "s", *["z"] * (zeros != "none")]
    x = RNG.normal(size=(3, 128)).astype(np.float32)
    graph = same(contrib("MatMulNBits", names, ["y"], **w.attrs), {"x": x}, constants, tolerance=2e-5)
    stored = weight_of(graph)
    assert (stored.bits, stored.block, stored.rows, stored.columns) == (bits, 32, 6, 128)
    assert stored.storage.symmetric == (zeros == "none")
    real = w.floats(w.zeros.astype(np.float32) if zeros != "none" else 1 << (bits - 1))
    np.testing.assert_allclose(stored.dequantized_rows(0, 6), real, atol=1e-5)
    codes = stored.quantized.rows(0, 6).codes.view(np.uint8) ^ (1 << (bits - 1))
    np.testing.assert_array_equal(codes & ((1 << bits) - 1), w.codes)


@pytest.mark.parametrize("block", [16, 32, 128])
def test_the_last_block_may_be_shorter(block):
    w = Packed(4, 72, block, 4)
    constants = {"w": w.operand, "s": w.scales, "z": packed(w.zeros, 4)}
    x = RNG.normal(size=(2, 3, 72)).astype(np.float32)
    graph = same(contrib("MatMulNBits", ["x", "w", "s", "z"], ["y"], **w.attrs), {"x": x}, constants, tolerance=2e-5)
    (node,) = [node for node in graph.nodes if node.op == "DequantizeLinear"]
    assert str(node.output.type) == "f32[72, 4]"


def test_a_bias_and_an_order_of_accuracy():
    w = Packed(4, 64, 32, 4)
    constants = {"w": w.operand, "s": w.scales, "b": RNG.normal(size=4).astype(np.float32)}
    node = contrib("MatMulNBits", ["x", "w", "s", "", "", "b"], ["y"], **w.attrs, accuracy_level=1)
    same(node, {"x": RNG.normal(size=(2, 64)).astype(np.float32)}, constants, tolerance=2e-5)


def test_half_precision_keeps_its_scales():
    w = Packed(6, 64, 32, 4)
    constants = {"w": w.operand, "s": w.scales.astype(np.float16)}
    x = RNG.normal(size=(3, 64)).astype(np.float16)
    graph = same(contrib("MatMulNBits", ["x", "w", "s"], ["y"], **w.attrs), {"x": x}, constants, tolerance=2e-3)
    (node,) = [node for node in graph.nodes if node.op == "DequantizeLinear"]
    assert [value.dtype.name for value in node.inputs] == ["i4", "f16"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_of_a_packed_table(bits, zeros):
    table = Packed(10, 64, 32, bits)
    constants = {"w": table.operand.reshape(10, -1), "s": table.scales}
    if zeros:
        constants["z"] = packed(table.zeros, bits)
    ids = RNG.integers(0, 10, (2, 3))
    node = contrib(
        "GatherBlockQuantized", ["w", "i", "s", *["z"] * zeros], ["y"], bits=bits, block_size=32, quantize_axis=1
    )
    graph = same(node, {"i": ids}, constants, tolerance=1e-6)
    (gather,) = [one for one in graph.nodes if one.op == "Gather"]
    stored = storage_of(gather.inputs[0])
    assert stored is not None and (stored.bits, stored.block, stored.rows) == (bits, 32, 10)


@pytest.mark.parametrize("kind", ["u4", "i4"])
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_of_a_table_of_narrow_integers(kind, zeros):
    """Held as four bits each, with 0 as the code of 0."""
    import onnx

    dtype = {"u4": onnx.TensorProto.UINT4, "i4": onnx.TensorProto.INT4}[kind]
    low = -8 if kind == "i4" else 0
    codes, zero = RNG.integers(low, low + 16, (6, 32)), RNG.integers(low, low + 16, (6, 2))
    ids = RNG.integers(0, 6, (2, 3))
    node = contrib("GatherBlockQuantized", ["w", "i", "s", *["z"] * zeros], ["y"], block_size=16, quantize_axis=-1)
    model = model_of([node], {"i": ids}, {"s": RNG.uniform(0.1, 1, (6, 2)).astype(np.float32)}, ["y"])
    model.graph.initializer.append(helper.make_tensor("w", dtype, (6, 32), codes.reshape(-1).tolist()))
    if zeros:
        model.graph.initializer.append(helper.make_tensor("z", dtype, (6, 2), zero.reshape(-1).tolist()))
    graph, report = expanded(model)
    assert not report.all_diagnostics()
    wanted, found = evaluate(load(model), {"i": ids})["y"], evaluate(graph, {"i": ids})["y"]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_a_table_and_a_product_that_share_their_codes_through_a_reshape():
    """As exporters tie the embedding to the logits: one constant, looked up as a matrix and multiplied as blocks."""
    w = Packed(10, 64, 32, 4)
    nodes = [
        contrib("GatherBlockQuantized", ["w", "i", "s"], ["h"], bits=4, block_size=32, quantize_axis=1),
        helper.make_node("Reshape", ["w", "shape"], ["w3"]),
        contrib("MatMulNBits", ["h", "w3", "s"], ["y"], **w.attrs),
    ]
    constants = {"w": w.operand.reshape(10, -1), "s": w.scales, "shape": np.array([10, 2, 16])}
    ids = np.array([[1, 5, 3]])
    model = model_of(nodes, {"i": ids}, constants, ["y"])
    graph, report = expanded(model)
    assert not report.all_diagnostics()
    np.testing.assert_allclose(evaluate(graph, {"i": ids})["y"], evaluate(load(model), {"i": ids})["y"], rtol=1e-4)
    (gather,) = [node for node in graph.nodes if node.op == "Gather"]
    table, head = storage_of(gather.inputs[0]), weight_of(graph)
    assert table is not None
    assert table.quantized.codes.fingerprint() == head.quantized.codes.fingerprint()


def test_what_is_expanded_is_printed_and_read_again():
    w = Packed(4, 64, 32, 4)
    node = contrib("MatMulNBits", ["x", "w", "s", "z"], ["y"], **w.attrs)
    x = RNG.normal(size=(2, 64)).astype(np.float32)
    graph, _ = expanded(model_of([node], {"x": x}, {"w": w.operand, "s": w.scales, "z": packed(w.zeros, 4)}, ["y"]))
    again = parse(print_graph(graph))
    np.testing.assert_array_equal(evaluate(again, {"x": x})["y"], evaluate(graph, {"x": x})["y"])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ["x", "w", "s", "", "g"]}, "its input features are in another order (g_idx)"),
        ({"feed": "w"}, "its codes are computed"),
        ({"feed": "s"}, "its scales are computed"),
        ({"attrs": {"weight_prepacked": 1}}, "its weight is laid out for a kernel"),
        ({"attrs": {"bits": 3}}, "its codes have 3 bits"),
    ],
)
def test_weights_that_stay(change, reason):
    w = Packed(4, 64, 32, 4)
    constants = {"w": w.operand, "s": w.scales, "g": np.zeros(64, np.int32)}
    feeds = {"x": RNG.normal(size=(2, 64)).astype(np.float32)}
    names = change.get("names", ["x", "w", "s"])
    if "feed" in change:
        feeds[change["feed"]] = constants.pop(change["feed"])
    constants = {name: array for name, array in constants.items() if name in names}
    node = contrib("MatMulNBits", names, ["y"], **{**w.attrs, **change.get("attrs", {})})
    _, report = expanded(model_of([node], feeds, constants, ["y"]))
    (warning,) = report.all_diagnostics()
    assert warning.code == "P325" and reason in warning.message


def test_rows_of_codes_are_read_on_their_own():
    raw = RNG.integers(0, 256, (5, 2, 8)).astype(np.uint8)
    base = InlineTensor(raw)
    for dtype, each, half in (("u4", 2, 0), ("i4", 2, 8), ("u2", 4, 0), ("i2", 4, 2), ("u8", 1, 0), ("i8", 1, 128)):
        bits = 8 // each
        flat = raw.reshape(5, -1)
        codes = np.stack([(flat >> (place * bits)) & ((1 << bits) - 1) for place in range(each)], axis=2)
        wanted = codes.reshape(5, -1).astype(np.int64)[:, :13] - half
        tensor = code_rows(base, dtype, 13)
        assert str(tensor.type) == f"{dtype}[5, 13]"
        np.testing.assert_array_equal(tensor.load().astype(np.int64), wanted)
        np.testing.assert_array_equal(tensor.rows(2, 4).astype(np.int64), wanted[2:4])


def test_zeros_that_are_half_floats_are_real_zeros_in_single_precision():
    w = Packed(6, 128, 32, 4)
    constants = {"w": w.operand, "s": w.scales.astype(np.float16), "z": w.zeros.astype(np.float16)}
    node = contrib("MatMulNBits", ["x", "w", "s", "z"], ["y"], **w.attrs)
    same(node, {"x": RNG.normal(size=(3, 128)).astype(np.float16)}, constants, tolerance=2e-2)
