"""One operator of onnxruntime's own, run by onnxruntime as it is and run as it is expanded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from frontends.onnx.load import load
from ir.base.types import TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager, Report

EXPAND = "infer-types,upgrade-opset,expand-contrib,infer-types"


def model_of(
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    opset: int = 21,
    shapes: Mapping[str, Sequence[Any]] | None = None,
) -> onnx.ModelProto:
    """A model whose inputs are as the feeds, with sizes or the dimensions given for them."""
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), (shapes or {}).get(name, array.shape)
        )
        for name, array in feeds.items()
    ]
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", inputs, results, held)
    domains = ("com.microsoft", "LlmExporter")
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def contrib(op: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> onnx.NodeProto:
    """A node of onnxruntime's domain."""
    return helper.make_node(op, inputs, outputs, domain="com.microsoft", **attrs)


def expanded(model: onnx.ModelProto, pipeline: str = EXPAND) -> tuple[Graph, Report]:
    """The graph in standard terms, verified after each pass, and what was told."""
    graph = load(model)
    report = PassManager(pipeline, (VerifyEach(),)).run(graph)
    return graph, report


def _typed(model: onnx.ModelProto, results: Mapping[str, np.ndarray]) -> None:
    """Raise AssertionError where the types that are inferred for the operator are not those of its results."""
    graph = load(model)
    assert not infer_types(graph)
    for value in graph.outputs:
        array, type_ = results[value.name], value.type
        assert isinstance(type_, TensorType) and type_.dtype.numpy == array.dtype and type_.rank == array.ndim, value
        for dim, size in zip(type_.shape or (), array.shape, strict=True):
            assert dim == size if isinstance(dim, int) else dim.accepts(size), value


def same(
    node: onnx.NodeProto,
    feeds: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    tolerance: float = 2e-6,
    opset: int = 21,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    rows: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = (),
) -> Graph:
    """The expanded graph, which computes what onnxruntime computes for the operator itself.

    Args:
        node: the operator.
        feeds: inputs by name.
        constants: other operands.
        tolerance: largest difference, of the largest number.
        opset: of the model.
        shapes: declared shapes of inputs.
        rows: by output, the part that means something.
        outputs: results that are compared; all where none is named.
    """
    outputs = list(outputs) or [name for name in node.output if name]
    model = model_of([node], feeds, constants or {}, outputs, opset, shapes)
    wanted = evaluate(load(model), feeds)
    _typed(model, wanted)
    graph, report = expanded(model)
    assert not report.all_diagnostics(), [str(item) for item in report.all_diagnostics()]
    assert not any(
        one.domain in ("com.microsoft", "LlmExporter") or one.op == node.op_type == "SimplifiedLayerNormalization"
        for one in graph.nodes
    )
    assert [value.name for value in graph.outputs] == outputs
    found = evaluate(graph, feeds)
    for name in outputs:
        part = (rows or {}).get(name, ...)
        right, got = wanted[name][part], found[name][part]
        assert got.dtype == right.dtype and got.shape == right.shape, (
            name,
            got.dtype,
            got.shape,
            right.dtype,
            right.shape,
        )
        assert np.isfinite(right.astype(np.float64)).all(), name
        largest = max(float(np.abs(right.astype(np.float64)).max()), 1e-3)
        apart = float(np.abs(got.astype(np.float64) - right.astype(np.float64)).max())
        assert apart <= tolerance * largest, (name, apart / largest)
    return graph
