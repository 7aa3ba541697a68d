"""One node of ONNX as a model, its numbers in onnxruntime, and those of what it is made of for MNN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from backends.mnn.modules.child import Converter
from backends.onnx.write import write
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from tests.support.modules.models import legal


@dataclass
class OneNode:
    """A node with its operands; None for one that is left out.

    Attributes:
        constant: places of the operands that are constants of the model.
        attrs: attributes; `outputs` results.
    """

    op: str
    operands: Sequence[np.ndarray | None]
    constant: Sequence[int] = ()
    opset: int = 24
    outputs: int = 1
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = ",".join("_" if x is None else f"{x.dtype}{list(x.shape)}" for x in self.operands)
        said = ",".join(f"{name}={value}" for name, value in self.attrs.items())
        return f"{self.op}({shapes}){said}{'c' if self.constant else ''}"

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The operands that are inputs of the model, by name."""
        return {f"x{place}": x for place, x in enumerate(self.operands) if x is not None and place not in self.constant}

    def model(self) -> onnx.ModelProto:
        """The model; its inputs have the shapes of the operands."""
        names = ["" if x is None else f"x{place}" for place, x in enumerate(self.operands)]
        node = helper.make_node(self.op, names, [f"y{place}" for place in range(self.outputs)], **self.attrs)
        given = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in self.feeds.items()
        ]
        held = [
            numpy_helper.from_array(x, f"x{place}")
            for place, x in enumerate(self.operands)
            if x is not None and place in self.constant
        ]
        made = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = helper.make_graph([node], "one", given, made, held)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        found = onnx.shape_inference.infer_shapes(model)
        del model.graph.output[:]
        model.graph.output.extend(found.graph.output)
        return model

    def wanted(self) -> list[np.ndarray]:
        """What onnxruntime gives; ONNX's reference where onnxruntime has no kernel."""
        import onnxruntime
        from onnx.reference import ReferenceEvaluator

        model, feeds = self.model(), self.feeds
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:
            return ReferenceEvaluator(model).run(None, feeds)
        return session.run(None, feeds)


def held(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Feeds in the element types that the inputs of a graph have."""
    return {value.name: feeds[value.name].astype(value.dtype.numpy) for value in graph.inputs}


def evaluated(case: OneNode, pipeline: str = "mnn-module", release: str = "3.6.1") -> list[np.ndarray]:
    """The numbers of what a node is made of, computed without MNN."""
    graph = legal(case.model(), release, pipeline)
    found = evaluate(graph, held(graph, case.feeds))
    return [found[value.name] for value in graph.outputs]


def run_on_mnn(case: OneNode, converter: Converter, folder: Path, release: str = "3.6.1") -> list[np.ndarray]:
    """The numbers that MNN gives."""
    graph = legal(case.model(), release)
    source, out = folder / "model.onnx", folder / "model.mnn"
    out.unlink(missing_ok=True)
    write(graph, source)
    converter.convert(source, out)
    feeds = {
        name: array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
        for name, array in held(graph, case.feeds).items()
    }
    found = converter.run(out, feeds, [value.name for value in graph.outputs])
    return list(found.values())


def assert_same(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], case: object) -> None:
    """Integers and truth values are equal, floats to 1e-4, and shapes the same."""
    assert len(found) == len(wanted), case
    for got, want in zip(found, (np.asarray(each) for each in wanted), strict=True):
        assert got.shape == want.shape, f"{case}: {got.shape} is not {want.shape}"
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, err_msg=str(case))
        else:
            np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64), err_msg=str(case))
