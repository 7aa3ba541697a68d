"""Small ONNX models and their way through the pipeline ``mnn-module``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from backends.mnn.target.releases import target
from frontends.onnx.load import load as load_onnx
from ir.graph.graph import Graph
from passes.framework.context import PassContext
from passes.framework.load import load
from passes.framework.manager import PassManager


def one_node(
    op: str,
    inputs: Sequence[tuple[int, Sequence[int | str]]],
    outputs: Sequence[tuple[int, Sequence[int | str]]],
    opset: int = 24,
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node with inputs ``x0``, ``x1`` ... and outputs ``y0`` ...; types are element type and shape."""
    given = [helper.make_tensor_value_info(f"x{index}", *each) for index, each in enumerate(inputs)]
    made = [helper.make_tensor_value_info(f"y{index}", *each) for index, each in enumerate(outputs)]
    node = helper.make_node(op, [item.name for item in given], [item.name for item in made], **attrs)
    graph = helper.make_graph([node], "g", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def legal(model: onnx.ModelProto, release: str = "3.6.1", pipeline: str = "mnn-module") -> Graph:
    """What the pipeline makes of a model."""
    graph = load_onnx(model)
    PassManager(load(pipeline)).run(graph, PassContext(target(release)))
    return graph
