"""Graphs of others of any size are brought to standard operators with work in proportion to their size."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from frontends.onnx.load import load
from ir.graph.graph import Graph
from passes.framework.manager import PassManager
from tests.support.contrib.one_node import contrib
from tests.support.work import calls_of

HEADS, KEPT, SIZE, WIDTH = 4, 2, 16, 64
PASSES = "expand-functions,infer-types,upgrade-opset,expand-contrib,widen-floats"
info = helper.make_tensor_value_info


def decoder(layers: int, kind: type = np.float32) -> onnx.ModelProto:
    """Layers in operators of onnxruntime, each with a history: inputs and outputs grow with them."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    held: dict[str, np.ndarray] = {
        "table": np.ones((32, WIDTH), kind),
        "one": np.array([1]),
        "axis": np.array(1),
        "gain": np.ones(WIDTH, kind),
        "cos": np.ones((64, SIZE // 2), kind),
        "sin": np.zeros((64, SIZE // 2), kind),
    }
    inputs = [info("ids", TensorProto.INT64, ["b", "s"]), info("mask", TensorProto.INT64, ["b", "t"])]
    outputs = []
    nodes = [
        helper.make_node("ReduceSum", ["mask", "one"], ["count"], keepdims=0),
        helper.make_node("Sub", ["count", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["lengths"], to=TensorProto.INT32),
        helper.make_node("Shape", ["mask"], ["shape"]),
        helper.make_node("Gather", ["shape", "axis"], ["all"]),
        helper.make_node("Cast", ["all"], ["total"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "ids"], ["x.0"]),
        helper.make_node("SimplifiedLayerNormalization", ["x.0", "gain"], ["n.0"]),
    ]

    def linear(x: str, y: str, columns: int) -> onnx.NodeProto:
        held[f"{y}.codes"] = np.zeros((columns, 2, 16), np.uint8)
        held[f"{y}.scales"] = np.ones((columns, 2), kind)
        return contrib("MatMulNBits", [x, f"{y}.codes", f"{y}.scales"], [y], K=WIDTH, N=columns, block_size=32)

    for layer in range(layers):
        x, n, p = f"x.{layer}", f"n.{layer}", f"l{layer}"
        past = [f"{p}.past.{part}" for part in ("k", "v")]
        now = [f"{p}.present.{part}" for part in ("k", "v")]
        inputs += [info(name, number, ["b", KEPT, "p", SIZE]) for name in past]
        outputs += [info(name, number, ["b", KEPT, "t", SIZE]) for name in now]
        nodes += [
            linear(n, f"{p}.qkv", (HEADS + 2 * KEPT) * SIZE),
            contrib(
                "GroupQueryAttention",
                [f"{p}.qkv", "", "", *past, "lengths", "total", "cos", "sin"],
                [f"{p}.mix", *now],
                num_heads=HEADS,
                kv_num_heads=KEPT,
                do_rotary=1,
            ),
            linear(f"{p}.mix", f"{p}.o", WIDTH),
            contrib("SkipSimplifiedLayerNormalization", [x, f"{p}.o", "gain"], [f"{p}.n", "", "", f"{p}.x"]),
            linear(f"{p}.n", f"{p}.up", WIDTH),
            contrib("QuickGelu", [f"{p}.up"], [f"{p}.act"], alpha=1.0),
            contrib(
                "SkipSimplifiedLayerNormalization",
                [f"{p}.x", f"{p}.act", "gain"],
                [f"n.{layer + 1}", "", "", f"x.{layer + 1}"],
            ),
        ]
    outputs.append(info(f"n.{layers}", number, ["b", "s", WIDTH]))
    constants = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def lifted(layers: int, kind: type = np.float32) -> Graph:
    graph = load(decoder(layers, kind))
    report = PassManager(PASSES).run(graph)
    assert [item.code for item in report.all_diagnostics()] in ([], ["T211"])
    assert not any(node.domain for node in graph.nodes)
    return graph


def test_the_mask_and_the_positions_are_built_once():
    """They follow from inputs that all layers share."""
    graph = lifted(6)
    made = [node.op for node in graph.nodes]
    assert made.count("Attention") == 6 and made.count("RotaryEmbedding") == 12
    assert made.count("LessOrEqual") == 1 and made.count("Range") == 2
    positions = {node.inputs[3] for node in graph.nodes if node.op == "RotaryEmbedding"}
    assert len(positions) == 1


def test_half_precision_and_histories():
    graph = lifted(2, np.float16)
    assert {value.dtype.name for value in graph.inputs} == {"i64", "f32"}
    assert {value.dtype.name for value in graph.outputs} == {"f32"}


def test_work_grows_with_the_nodes():
    """Inputs, outputs and layers twice as many: twice the work, and not four times."""
    models = [decoder(layers) for layers in (30, 60)]
    work = []
    for model in models:
        graph = load(model)
        work.append(calls_of(PassManager(PASSES).run, graph))
    assert 1.7 < work[1] / work[0] < 2.3
