"""The compiler inside other programs: a model in, passes over it, the same kind of model out.

This is the stable interface for authors of other converters (``docs/embedding.md``). Importing it loads neither
onnxruntime nor any other runtime or framework; what a model or a pass needs is loaded when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from ir.base.diag import LadingError
from ir.base.store import Store, using_store
from ir.facts.free_tensors import FreeTensor, FreeTensors
from ir.facts.inputs import DynamicInputs
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.weight import keep_all
from passes.framework.base import Pass
from passes.framework.context import PassContext
from passes.framework.manager import Instrument, PassManager, Report
from passes.framework.pipeline import Pipeline

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

Model = TypeVar("Model")
Steps = str | Pipeline | Pass | Sequence[Pass]
"""A pipeline: text or name, a parsed pipeline, or passes of one's own."""


@dataclass(frozen=True)
class Outcome(Generic[Model]):
    """What a run made.

    Attributes:
        model: the model after the passes, of the kind that was given.
        graph: the same as `ir.Graph`.
        report: what each pass did, with seconds, counts, rule statistics and warnings.
    """

    model: Model
    graph: Graph
    report: Report

    @property
    def facts(self) -> Mapping[str, Any]:
        """Decisions that passes recorded, by name, as objects of `ir.facts.precision` and of plugins."""
        return self.graph.facts

    @property
    def inputs(self) -> DynamicInputs | None:
        """The reconciled inputs, when discover-inputs ran: the calling convention that the model now has."""
        return self.graph.fact(DynamicInputs)

    @property
    def free(self) -> tuple[FreeTensor, ...]:
        """Tensors that the model read and nothing in it made: what each became, and why."""
        fact = self.graph.fact(FreeTensors)
        return fact.tensors if fact is not None else ()

    @property
    def precision(self) -> PrecisionPlan | None:
        """The storage type of every weight, when assign-precision ran."""
        return self.graph.fact(PrecisionPlan)


@dataclass(frozen=True)
class Declared(Generic[Model]):
    """A model whose every tensor is declared.

    Attributes:
        model: the model, of the kind that was given.
        tensors: what nothing in it made: type, range, default, readers and reason.
    """

    model: Model
    tensors: tuple[FreeTensor, ...]


def declare_inputs(model: Model, *, base: str | os.PathLike[str] | None = None) -> Declared[Model]:
    """Declare the tensors that a model reads and nothing in it makes, and change nothing else.

    Each becomes an input with the type and shape that its readers force and the reason as its documentation; one that
    the rest of the graph determines, such as the axes of a Slice whose result is declared, becomes a constant.

    Args:
        model: an ``onnx.ModelProto``, its bytes, or an ``onnx_graphsurgeon.Graph``; a copy is changed.
        base: folder of external data.

    Raises:
        LadingError: F632 to F634 what is read can be no tensor, or only its readers' authors know what it was.
    """
    kind = _kind(model)
    if kind not in ("model", "bytes", "graphsurgeon"):
        raise LadingError(
            "F630", f"a {type(model).__name__} is no model that inputs are declared in",
            hint="give an onnx.ModelProto, its bytes or an onnx_graphsurgeon.Graph",
        )  # fmt: skip
    from backends.onnx.declare import in_graphsurgeon, in_message

    graph = lift(model, base=base)
    fact = graph.fact(FreeTensors)
    tensors = fact.tensors if fact is not None else ()
    if kind == "graphsurgeon":
        return Declared(in_graphsurgeon(model, graph, tensors), tensors)
    return Declared(in_message(model, graph, tensors), tensors)  # type: ignore[arg-type]


def run(
    model: Model,
    pipeline: Steps = "canonicalize",
    *,
    settings: Sequence[object] = (),
    instruments: Sequence[Instrument] = (),
    executor: Executor | None = None,
    store: Store | None = None,
    free: Literal["error", "input"] = "input",
    base: str | os.PathLike[str] | None = None,
    in_place: bool = False,
) -> Outcome[Model]:
    """Run passes on a model.

    Args:
        model: an ``onnx.ModelProto``, its bytes, an ``onnx_graphsurgeon.Graph``, or an `ir.Graph`, which is edited.
            The first three are left as they are, and must stay so while the outcome is used: constants are shared.
        pipeline: see `Steps`.
        settings: objects that passes ask for by type, such as a target profile.
        instruments: watch the passes, such as `passes.framework.instruments.VerifyEach`.
        executor: runs what passes split into jobs; the calling thread when None. The result does not depend on it.
        store: where passes keep work between runs; the folder of ``LADING_CACHE`` when None.
        free, base: see `lift`.
        in_place: put the result into the graph-surgeon graph that was given; when a pass fails it is as before.

    Raises:
        LadingError: everything that is wrong with the model, the pipeline or the run.
    """
    kind = _kind(model)
    if in_place and kind != "graphsurgeon":
        raise ValueError("only graph-surgeon graphs are changed in place; ir graphs always are")
    graph = lift(model, free=free, base=base)
    manager = PassManager(_pipeline(pipeline), instruments)
    ctx = PassContext(*settings, executor=executor, store=store)
    report = manager.run(graph, ctx)
    if kind in ("graph", "path"):
        return Outcome(model, graph, report)
    with using_store(ctx.store):
        keep_all((value.const for value in graph.consts.values() if value.const is not None), ctx.executor)
        return Outcome(_made(kind, model, graph, in_place), graph, report)


def _made(kind: str, model: Any, graph: Graph, in_place: bool) -> Any:
    """The graph as the kind of model that was given."""
    if kind == "model":
        return lower(graph)
    if kind == "bytes":
        return lower(graph).SerializeToString()
    from backends.onnx.graphsurgeon import to_graphsurgeon, update

    if in_place:
        update(model, graph)
        return model
    return to_graphsurgeon(graph)


def apply_in_place(model: gs.Graph, pipeline: Steps = "canonicalize", **options: Any) -> Outcome[gs.Graph]:
    """Run passes on a graph-surgeon graph that the caller holds; `run` with ``in_place=True``.

    Tensors that keep their names and nodes that keep operator and first output stay the same Python objects.
    """
    return run(model, pipeline, in_place=True, **options)


def lift(
    source: onnx.ModelProto | bytes | str | os.PathLike[str] | gs.Graph | Graph,
    *,
    free: Literal["error", "input"] = "input",
    base: str | os.PathLike[str] | None = None,
) -> Graph:
    """The graph of a model.

    Args:
        source: a model as for `run`, or whatever a frontend recognises: the path of an ONNX file, the folder or hub
            name of a checkpoint, and others.
        free: what to do about tensors that an ONNX or graph-surgeon model reads and never makes: make each an ``input``
            of the type that its readers force (see `Outcome.free`), or an ``error``.
        base: folder of external data, where it is not that of the ONNX file.

    Raises:
        LadingError: F500 to F559 checkpoints, F600 to F615 ONNX, F620 graph-surgeon, F630 none of these.
    """
    kind = _kind(source)
    if kind == "graph":
        return source  # type: ignore[return-value]
    if kind == "graphsurgeon":
        from frontends.onnx.graphsurgeon import from_graphsurgeon

        return from_graphsurgeon(source, free=free, base=base)
    if kind == "path":
        from tools.shared.formats import ONNX, Formats

        return Formats().read(os.fspath(source), otherwise=ONNX, free=free, base=base)  # type: ignore[arg-type]
    from frontends.onnx.load import load

    return load(source, free=free, base=base)  # type: ignore[arg-type]


def lower(graph: Graph) -> onnx.ModelProto:
    """The ONNX model of a graph, its constants inside; ``backends.onnx.write.write`` writes files with external
    data."""
    from backends.onnx.write import to_model

    return to_model(graph)


def _pipeline(steps: Steps) -> Pipeline | str:
    if isinstance(steps, str | Pipeline):
        return steps
    return Pipeline((steps,) if isinstance(steps, Pass) else tuple(steps))


def _kind(model: object) -> str:
    """What sort of model an object is, told without importing the package it comes from."""
    if isinstance(model, Graph):
        return "graph"
    if isinstance(model, str | os.PathLike):
        return "path"
    if isinstance(model, bytes | bytearray | memoryview):
        return "bytes"
    names = {(base.__module__.partition(".")[0], base.__name__) for base in type(model).__mro__}
    if ("onnx_graphsurgeon", "Graph") in names:
        return "graphsurgeon"
    if getattr(type(model), "DESCRIPTOR", None) is not None and type(model).__name__ == "ModelProto":
        return "model"
    raise LadingError(
        "F630",
        f"a {type(model).__module__}.{type(model).__name__} is not a model",
        hint="give an onnx.ModelProto, its bytes, an onnx_graphsurgeon.Graph or an ir.Graph",
    )


__all__ = ["Declared", "Outcome", "Steps", "apply_in_place", "declare_inputs", "lift", "lower", "run"]
