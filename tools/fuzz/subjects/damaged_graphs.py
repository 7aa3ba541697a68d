"""Graphs that are damaged or make no sense, as text, as ONNX, and as nodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from tools.fuzz.inputs.mutate import damage_bytes, damage_text
from tools.fuzz.inputs.mutate_onnx import damage_model
from tools.fuzz.inputs.random_graphs import decorate, random_graph
from tools.fuzz.inputs.random_nodes import random_nodes
from tools.fuzz.subjects.laws import reads_back
from tools.fuzz.target import Broken, Case, Target, require

if TYPE_CHECKING:
    from ir.graph.graph import Graph

Result = TypeVar("Result")

_WORDS = (
    "lading", "graph", "opset", "dim", "const", "input", "output", "table", "fact", "function", "meta", "_", "step",
    "..", "f32[]", "i64[2]", "seq<f32[2]>", "optional<f32[]>", "f32[*]", "type",
    "overload", "at", "inf", "nan:ff", "split",
    "bytes", '"\\u{d800}"', 'b"\\u{ff}"', "%a", "@c", "floats[]", "i4[3]", "str[1]", "file", "quantize", "cast",
    "dynamic-inputs", "precision-plan", "null",
)  # fmt: skip


def use(graph: Graph, case: Case) -> None:
    """What commands do with a graph that they were given: each step works or gives a coded error."""
    from backends.onnx.write import to_model
    from frontends.onnx.load import load
    from ir.analysis.liveness import peak_memory
    from ir.base.diag import LadingError
    from ir.verify.stages import verify
    from passes.framework.instruments import VerifyEach
    from passes.framework.manager import PassManager
    from tools.diff.match import Differ
    from tools.inspect.summary import lines, summarize

    problems = [item for item in _told(lambda: verify(graph), "the verifier") if item.severity == "error"]
    # Circles cannot be printed, and what names lack cannot be told apart.
    if {item.code for item in problems} & {"I111", "I112", "I113", "I114"}:
        return
    reads_back(graph)
    _told(lambda: lines(summarize(graph)), "the summary")
    _told(lambda: peak_memory(graph, {}), "the estimate of memory")
    require(not _told(lambda: Differ().run(graph, graph).changes, "the comparison"), "a graph differs from itself")
    if not problems:
        load(to_model(graph))
        evaluate_sample(graph)
    try:
        PassManager("canonicalize", [VerifyEach()] if not problems else []).run(graph)
    except LadingError as error:
        require(bool(problems) or error.code[0] != "I", f"a pass broke the form of a graph: {error}")
        raise
    with suppress(LadingError):
        PassManager("discover-inputs").run(graph)


def _told(action: Callable[[], Result], what: str) -> Result:
    """The result of what reports on a graph, which may say anything but must not refuse to."""
    from ir.base.diag import LadingError

    try:
        return action()
    except LadingError as error:
        raise Broken(f"{what} refuses a graph: {error}") from error


def evaluate_sample(graph: Graph) -> None:
    """Compute a graph on made-up inputs, or be told why not."""
    from ir.base.diag import LadingError
    from ir.evaluate.evaluator import evaluate
    from ir.evaluate.random_feeds import sample_feeds

    with suppress(LadingError):
        evaluate(graph, sample_feeds(graph), memory_limit=256 << 20, threads=1)


# ---- text ----


def _text(case: Case) -> str:
    from ir.text.printer import print_graph

    graph = random_graph(case.rng, nodes=6)
    if case.rng.random() < 0.4:
        graph = decorate(graph, case.rng)
    return damage_text(case.rng, print_graph(graph), _WORDS)


def _parse(text: str, case: Case) -> None:
    from ir.text.parser import parse

    use(parse(text, base=case.folder), case)


# ---- ONNX ----


def _model(case: Case) -> bytes:
    from backends.onnx.write import to_model

    graph = random_graph(case.rng, nodes=6)
    if case.rng.random() < 0.2:
        graph.add_const("spread", _sparse())
    data = damage_model(case.rng, to_model(graph)).SerializeToString()
    return damage_bytes(case.rng, data) if case.rng.random() < 0.2 else data


def _sparse():
    import numpy as np

    from ir.tensor.inline import InlineTensor

    return InlineTensor(np.arange(64, dtype=np.float32))


def _lift(data: bytes, case: Case) -> None:
    from frontends.onnx.load import load

    path = case.folder / "model.onnx"
    path.write_bytes(data)
    use(load(path, free=case.rng.choice(["error", "input"])), case)


def _judge(data: bytes, case: Case) -> None:
    from tools.doctor import diagnose, releases_of

    path = case.folder / "model.onnx"
    path.write_bytes(data)
    diagnose(path, releases_of("all"))


# ---- nodes ----


def _nodes(graph: Graph, case: Case) -> None:
    from ir.infer.engine import infer_types

    _told(lambda: infer_types(graph), "inference")
    use(graph, case)


DAMAGED_GRAPHS = (
    Target("damaged-text", "damaged text of a graph", _text, _parse),
    Target("damaged-onnx", "damaged ONNX models", _model, _lift),
    Target("doctor-onnx", "damaged ONNX models, judged by the doctor", _model, _judge),
    Target(
        "nodes",
        "nodes of every operator with inputs and attributes that may not fit",
        lambda case: random_nodes(case.rng),
        _nodes,
    ),
)
