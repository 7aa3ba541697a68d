"""Norms, activations, rotations and products of onnxruntime's own compute the same in standard operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from ir.evaluate.evaluator import evaluate
from tests.support.contrib.one_node import contrib, expanded, model_of, same

RNG = np.random.default_rng(3)


def floats(*shape: int, scale: float = 1.0, dtype=np.float32) -> np.ndarray:
    return (RNG.normal(size=shape) * scale).astype(dtype)


X, SKIP, GAIN, SHIFT, BIAS = floats(2, 5, 16), floats(2, 5, 16), floats(16), floats(16), floats(16)


# ---- norms ----


@pytest.mark.parametrize("epsilon", [1e-6, 0.5])
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("outputs", [["y"], ["y", "r"]])
def test_simplified_norm(epsilon, axis, outputs):
    gain = floats(16) if axis == -1 else floats(5, 16)
    node = helper.make_node(
        "SimplifiedLayerNormalization", ["x", "g"], outputs, axis=axis, epsilon=epsilon, stash_type=1
    )
    graph = same(node, {"x": X}, {"g": gain})
    assert "RMSNormalization" in [one.op for one in graph.nodes]


def test_simplified_norm_of_small_numbers():
    """Where epsilon decides."""
    node = helper.make_node("SimplifiedLayerNormalization", ["x", "g"], ["y"], epsilon=1e-5)
    same(node, {"x": floats(1, 3, 16, scale=1e-3)}, {"g": GAIN})


@pytest.mark.parametrize("outputs", [["y"], ["y", "", "", "s"], ["y", "", "r"], ["y", "", "r", "s"]])
@pytest.mark.parametrize("bias", [False, True])
def test_skip_simplified_norm(outputs, bias):
    node = contrib("SkipSimplifiedLayerNormalization", ["x", "k", "g", *["b"] * bias], outputs, epsilon=1e-5)
    same(node, {"x": X, "k": SKIP}, {"g": GAIN, "b": BIAS} if bias else {"g": GAIN})


@pytest.mark.parametrize("shape", [(5, 16), (1, 5, 16)])
def test_a_skip_that_is_the_same_for_the_batch(shape):
    node = contrib("SkipSimplifiedLayerNormalization", ["x", "k", "g"], ["y", "", "", "s"])
    same(node, {"x": X, "k": floats(*shape)}, {"g": GAIN})


@pytest.mark.parametrize("outputs", [["y"], ["y", "", "", "s"]])
@pytest.mark.parametrize("given", [[], ["h"], ["h", "b"], ["", "b"]])
def test_skip_norm(outputs, given):
    node = contrib("SkipLayerNormalization", ["x", "k", "g", *given], outputs, epsilon=1e-4)
    constants = {"g": GAIN, "h": SHIFT, "b": BIAS}
    same(node, {"x": X, "k": SKIP}, {name: constants[name] for name in ("g", *filter(None, given))})


@pytest.mark.parametrize("kinds", [False, True])
@pytest.mark.parametrize("positions", [False, True])
def test_embedding_norm(kinds, positions):
    ids = RNG.integers(0, 9, (2, 5)).astype(np.int32)
    names = [
        "ids",
        "kinds" if kinds else "",
        "words",
        "places",
        "kind_rows" if kinds else "",
        "g",
        "h",
        "",
        "positions",
    ]
    feeds = {"ids": ids, "kinds": RNG.integers(0, 2, (2, 5)).astype(np.int32)} if kinds else {"ids": ids}
    if positions:
        feeds["positions"] = RNG.integers(0, 7, (2, 5)).astype(np.int32)
    constants = {"words": floats(9, 16), "places": floats(7, 16), "kind_rows": floats(2, 16), "g": GAIN, "h": SHIFT}
    if not kinds:
        del constants["kind_rows"]
    node = contrib("EmbedLayerNormalization", names if positions else names[:7], ["y", "m"], epsilon=1e-6)
    same(node, feeds, constants, outputs=["y"])


def test_a_norm_of_an_opset_without_norms():
    """onnxruntime knows LayerNormalization as an operator of ONNX in every opset."""
    node = helper.make_node("LayerNormalization", ["x", "g", "h"], ["y"], axis=-1, epsilon=1e-3)
    graph = same(node, {"x": X}, {"g": GAIN, "h": SHIFT}, opset=13)
    assert [one.op for one in graph.nodes] == ["LayerNormalization"] and graph.opsets[""] == 24


# ---- activations ----


@pytest.mark.parametrize("op", ["Gelu", "FastGelu"])
def test_gelus(op):
    same(contrib(op, ["x"], ["y"]), {"x": X}, tolerance=1e-5)


@pytest.mark.parametrize("op", ["BiasGelu", "FastGelu"])
def test_gelus_of_a_sum(op):
    same(contrib(op, ["x", "b"], ["y"]), {"x": X}, {"b": BIAS}, tolerance=1e-5)


@pytest.mark.parametrize("alpha", [None, 1.0, 0.5])
def test_quick_gelu(alpha):
    graph = same(contrib("QuickGelu", ["x"], ["y"], **({} if alpha is None else {"alpha": alpha})), {"x": X})
    assert ("Swish" in [node.op for node in graph.nodes]) == (alpha == 1.0)


# ---- rotations ----


def tables(width: int, length: int = 20) -> dict[str, np.ndarray]:
    """Tables of a real rotation."""
    angles = np.arange(length)[:, None] * (100.0 ** -(np.arange(width // 2) / (width // 2)))
    return {"c": np.cos(angles).astype(np.float32), "s": np.sin(angles).astype(np.float32)}


PLACES = np.stack([np.arange(3, 8), np.arange(5)]).astype(np.int64)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("places", [PLACES, np.array([4], np.int64)], ids=["each", "first"])
@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding(interleaved, places, rank):
    x = floats(2, 5, 32) if rank == 3 else floats(2, 4, 5, 8)
    node = contrib("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], interleaved=interleaved)
    same(node, {"x": x, "p": places}, tables(8))


@pytest.mark.parametrize("rank", [3, 4])
def test_rotary_embedding_of_a_part(rank):
    x = floats(2, 5, 32) if rank == 3 else floats(2, 4, 5, 8)
    node = contrib("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], num_heads=4, rotary_embedding_dim=4)
    same(node, {"x": x, "p": PLACES}, tables(4))


def test_rotary_embedding_of_open_sizes():
    x = floats(2, 5, 32)
    node = contrib("RotaryEmbedding", ["x", "p", "c", "s"], ["y"])
    same(node, {"x": x, "p": np.array([4], np.int64)}, tables(8), shapes={"x": ["b", "n", 32]})


# ---- products ----


@pytest.mark.parametrize("a", [0, 1])
@pytest.mark.parametrize("b", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
def test_fused_products(op, a, b, alpha):
    x, w = floats(2, 6, 8), floats(8, 4)
    feeds = {"x": np.ascontiguousarray(x.swapaxes(1, 2)) if a else x}
    same(contrib(op, ["x", "w"], ["y"], transA=a, transB=b, alpha=alpha), feeds, {"w": w.T.copy() if b else w})


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_a_product_of_dynamically_quantized_rows(zero, bias, kind):
    low = -128 if kind == np.int8 else 0
    constants = {
        "w": RNG.integers(low, low + 256, (8, 4)).astype(kind),
        "ws": np.abs(floats(4)) / 100,
        "wz": RNG.integers(low + 100, low + 150, 4).astype(kind),
        "b": floats(4),
    }
    names = ["x", "w", "ws", "wz" if zero else "", "b" if bias else ""]
    while not names[-1]:
        names.pop()
    same(contrib("DynamicQuantizeMatMul", names, ["y"]), {"x": floats(5, 8)}, {n: constants[n] for n in names[1:] if n})


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_of_codes_as_floats(bias):
    constants = {
        "w": RNG.integers(-128, 128, (8, 4)).astype(np.int8),
        "as": np.float32(0.03),
        "ws": np.abs(floats(4)) / 100,
        "az": np.uint8(120),
        "wz": RNG.integers(-20, 20, 4).astype(np.int8),
        "b": floats(4),
    }
    names = ["x", "w", "as", "ws", "az", "wz", *["b"] * bias]
    x = RNG.integers(0, 256, (5, 8)).astype(np.uint8)
    same(contrib("MatMulIntegerToFloat", names, ["y"]), {"x": x}, {name: constants[name] for name in names[1:]})


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
def test_quantization_of_onnxruntime_is_that_of_onnx(kind):
    scale, zero = np.float32(0.02), kind(7)
    same(contrib("QuantizeLinear", ["x", "s", "z"], ["y"]), {"x": X}, {"s": scale, "z": zero})
    codes = RNG.integers(0, 100, (3, 4)).astype(kind)
    scales, zeros = np.abs(floats(4)), RNG.integers(0, 9, 4).astype(kind)
    same(contrib("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1), {"x": codes}, {"s": scales, "z": zeros})


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_codes_of_two(op):
    a, b = (RNG.integers(0, 256, (3, 8)).astype(np.uint8) for _ in range(2))
    constants = {
        "as": np.float32(0.03), "az": np.uint8(100), "bs": np.float32(0.05), "bz": np.uint8(130),
        "cs": np.float32(0.1), "cz": np.uint8(128),
    }  # fmt: skip
    one_code = 1.001 / 200
    same(
        contrib(op, ["a", "as", "az", "b", "bs", "bz", "cs", "cz"], ["y"]),
        {"a": a, "b": b},
        constants,
        tolerance=one_code,
    )


@pytest.mark.parametrize("op", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_codes_of_one(op):
    constants = {"xs": np.float32(0.03), "xz": np.uint8(100), "ys": np.float32(0.03), "yz": np.uint8(30)}
    x = np.arange(256, dtype=np.uint8).reshape(2, 128)
    same(contrib(op, ["x", "xs", "xz", "ys", "yz"], ["y"]), {"x": x}, constants, tolerance=1.001 / 255)


# ---- what stays ----

STAYS = {
    "a scale of a rotation": (
        contrib("RotaryEmbedding", ["x", "p", "c", "s"], ["y"], scale=2.0), {"x": floats(2, 5, 32), "p": PLACES}, tables(8),
        "it has a scale",
    ),
    "a transposed batch": (
        contrib("FusedMatMul", ["x", "w"], ["y"], transBatchA=1), {"x": floats(2, 6, 8)}, {"w": floats(6, 2, 3)},
        "it transposes the batch",
    ),
    "an attribute of a later release": (
        contrib("QuickGelu", ["x"], ["y"], beta=2.0), {"x": X}, {}, "nobody knows its attribute beta",
    ),
    "a statistic that nothing gives": (
        contrib("SkipSimplifiedLayerNormalization", ["x", "k", "g"], ["y", "m"]), {"x": X, "k": SKIP}, {"g": GAIN},
        "nothing standard computes its output 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_what_has_no_equivalent_stays_and_is_told(case):
    node, feeds, constants, reason = STAYS[case]
    graph, report = expanded(model_of([node], feeds, constants, [name for name in node.output if name]))
    (warning,) = report.all_diagnostics()
    assert warning.code == "P325" and warning.severity == "warning" and reason in warning.message
    assert [one.op for one in graph.nodes] == [f"com.microsoft.{node.op_type}"]


def test_an_old_graph_that_cannot_be_upgraded_keeps_its_operators():
    nodes = [
        helper.make_node("Resize", ["x", "s", "s"], ["h"], coordinate_transformation_mode="tf_half_pixel_for_nn"),
        contrib("SkipSimplifiedLayerNormalization", ["h", "k", "g"], ["y"]),
    ]
    graph, report = expanded(
        model_of(nodes, {"x": X, "k": SKIP}, {"g": GAIN, "s": np.ones(3, np.float32)}, ["y"], opset=11)
    )
    assert [item.code for item in report.all_diagnostics()] == ["P324", "P325"]
    assert "needs opset 23, the graph has 11" in report.all_diagnostics()[1].message
    assert evaluate(graph, {"x": X, "k": SKIP})["y"].shape == X.shape


def test_many_nodes_that_stay_are_one_warning():
    nodes = [contrib("QuickGelu", [f"v{place}"], [f"v{place + 1}"], beta=2.0) for place in range(40)]
    _, report = expanded(model_of(nodes, {"v0": X}, {}, ["v40"]))
    (warning,) = report.all_diagnostics()
    assert warning.message == "40 nodes of com.microsoft.QuickGelu stay: nobody knows its attribute beta"
