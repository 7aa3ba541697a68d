"""One operator evaluated on arrays."""

from __future__ import annotations

import numpy as np

from ir.base.types import Dim, TensorType
from ir.evaluate.evaluator import evaluate
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.tensor.inline import InlineTensor

_RNG = np.random.default_rng(7)


def run(op: str, *arrays: np.ndarray | None, outputs: int = 1, dynamic: bool = False, **attrs) -> list[np.ndarray]:
    """One operator on arrays, its types inferred first; `dynamic` hides the sizes from inference."""
    graph = Graph("one")
    feeds, values = {}, []
    for index, array in enumerate(arrays):
        if array is None:
            values.append(None)
            continue
        dtype = InlineTensor(array).type.dtype
        shape = tuple(Dim(f"x{index}_{axis}") if dynamic else size for axis, size in enumerate(array.shape))
        values.append(graph.add_input(f"x{index}", TensorType(dtype, shape)))
        feeds[f"x{index}"] = array
    node = graph.add(op, values, attrs, outputs=("",) * outputs)
    graph.set_outputs(node.outputs)
    assert infer_types(graph) == []
    found = list(evaluate(graph, feeds).values())
    for value, array in zip(node.outputs, found, strict=True):
        assert value.dtype.numpy == array.dtype
        assert len(value.shape) == array.ndim
        assert all(dim == size for dim, size in zip(value.shape, array.shape, strict=True) if type(dim) is int)
    return found


def normal(*shape: int) -> np.ndarray:
    """Normally distributed float32 numbers."""
    return _RNG.standard_normal(shape).astype(np.float32)
