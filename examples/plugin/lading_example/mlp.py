"""A frontend for ``.mlp`` files: small networks as JSON.

    {"width": 4, "layers": [{"weight": [[...]], "activation": "squared-relu"}, {"factors": [[[...]], [[...]]]}]}

A weight is a matrix ``[in, out]``, or two factors whose product it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F32, Dim, TensorType
from ir.graph.graph import Graph, Value
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from lading_example.low_rank import low_rank


class MlpFile:
    """What Lading needs: suffixes and load. `frontends.frontend.Frontend` has more, with defaults."""

    suffixes = (".mlp",)

    @staticmethod
    def load(path: str) -> Graph:
        """The graph of a file; LadingError for whatever is wrong with it."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return build(data, Path(path).stem)
        except OSError as error:
            raise LadingError("U910", f"cannot read: {error.strerror}", path) from None
        except (KeyError, TypeError, ValueError) as error:
            raise LadingError("U910", f"not an .mlp file: {error!r}", path) from None


def build(data: dict[str, Any], name: str) -> Graph:
    """The graph of the decoded JSON."""
    graph = Graph(name)
    batch = graph.add_dim(Dim("batch", 1, 4096))
    value = graph.add_input("x", TensorType(F32, (batch, int(data["width"]))))
    for index, layer in enumerate(data["layers"]):
        weight = graph.add_const(f"layer{index}.weight", _matrix(layer))
        value = graph.add(
            "MatMul", [value, weight], outputs=[f"layer{index}.product"], loc=f"{name}: layer {index}"
        ).output
        value = _activated(graph, value, layer.get("activation", "none"), index)
    graph.set_outputs([value])
    return graph


def _matrix(layer: dict[str, Any]) -> Tensor:
    if "factors" in layer:
        left, right = (InlineTensor(np.array(item, np.float32)) for item in layer["factors"])
        return low_rank(left, right)
    return InlineTensor(np.array(layer["weight"], np.float32))


def _activated(graph: Graph, value: Value, activation: str, index: int) -> Value:
    if activation == "none":
        return value
    positive = graph.add("Relu", [value], outputs=[f"layer{index}.relu"]).output
    if activation == "relu":
        return positive
    if activation != "squared-relu":
        raise ValueError(f"unknown activation {activation!r}")
    return graph.add("Mul", [positive, positive], outputs=[f"layer{index}.square"]).output
