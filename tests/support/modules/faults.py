"""Models that MNN computes wrong or dies of, brought past the table that keeps them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from backends.mnn.modules.child import Converter
from backends.mnn.modules.table import rows
from backends.mnn.modules.table.row import Right
from backends.mnn.modules.verify import Subject
from backends.onnx.write import write
from frontends.onnx.load import load
from ir.graph.copy import copied
from ir.graph.graph import Graph

F32 = TensorProto.FLOAT
SHAPE: Sequence[int | str] = ("n", 4)


def lie(monkeypatch, op: str) -> None:
    """Have the table say that an operator is right as it stands."""
    monkeypatch.setitem(rows.ROWS, op, (Right(op, "a lie"),))  # type: ignore[arg-type]


def model_of(nodes: Sequence[onnx.NodeProto], shape: Sequence[int | str] = SHAPE, result=SHAPE) -> onnx.ModelProto:
    """A model from ``x`` to ``y``."""
    given = [helper.make_tensor_value_info("x", F32, shape)]
    made = [helper.make_tensor_value_info("y", F32, result)]
    graph = helper.make_graph(nodes, "g", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def chain(*ops: str) -> onnx.ModelProto:
    """Operators one after the other from ``x`` by ``v1``, ``v2`` ... to ``y``."""
    names = ["x", *(f"v{number}" for number in range(1, len(ops))), "y"]
    places = zip(ops, names[:-1], names[1:], strict=True)
    return model_of(
        [helper.make_node(op, [a], [b], name=f"{op}_{number}") for number, (op, a, b) in enumerate(places, 1)]
    )


def straight(model: onnx.ModelProto, folder: Path) -> Subject:
    """A model as the converter alone makes it."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    graph = load(path)

    def convert(changed: Graph, out: Path) -> None:
        source = out.with_name(out.stem + ".source.onnx")
        write(changed, source)
        with Converter() as converter:
            converter.convert(source, out)

    convert(graph, folder / "model.mnn")
    return Subject(graph, copied(graph), folder / "model.mnn", path, ["lading", "reduce", "model.onnx"], convert)


class Runtime:
    """Stands in for the runtime: each run gives what a function makes of the inputs."""

    def __init__(self, compute: Callable[[int, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> None:
        self.compute = compute
        self.runs = 0

    def __call__(self, packages: Path | None) -> Runtime:
        return self

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def run_many(self, model, feeds, outputs, *, again=False, seconds=0.0):
        """As `Converter.run_many`."""
        found = []
        for one in [*feeds, *(feeds if again else ())]:
            self.runs += 1
            made = self.compute(self.runs, one)
            found.append({name: made[name] for name in outputs})
        return found
