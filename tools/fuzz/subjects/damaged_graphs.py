"""Graphs that are damaged or make no sense, as text, as ONNX, and as nodes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from tools.fuzz.inputs.mutate import damage_bytes, damage_json, damage_text
from tools.fuzz.inputs.mutate_onnx import damage_model, stretch_model
from tools.fuzz.inputs.random_graphs import decorate, random_graph
from tools.fuzz.inputs.random_nodes import random_nodes
from tools.fuzz.inputs.samples import checkpoint
from tools.fuzz.subjects.laws import reads_back
from tools.fuzz.target import Broken, Case, Target, require

if TYPE_CHECKING:
    from ir.graph.graph import Graph

Result = TypeVar("Result")

CHILD_SECONDS = 10.0
"""Time that the kernels have here, so that a case that keeps them busy for ever does not count as one that hangs."""

_WORDS = (
    "lading", "graph", "opset", "dim", "const", "input", "output", "table", "fact", "function", "meta", "_", "step",
    "..", "f32[]", "i64[2]", "seq<f32[2]>", "optional<f32[]>", "f32[*]", "type",
    "overload", "at", "inf", "nan:ff", "split",
    "bytes", '"\\u{d800}"', 'b"\\u{ff}"', "%a", "@c", "floats[]", "i4[3]", "str[1]", "file", "quantize", "cast",
    "dynamic-inputs", "precision-plan", "null", "4611686018427387904", "f32[0, 4611686018427387904]",
    "[0, 4611686018427387904]", "str[0, 9223372036854775807]", "[]", "[[]]", "-9223372036854775808", "-1",
)  # fmt: skip


def use(graph: Graph, case: Case) -> None:
    """What commands do with a graph that they were given: each step works or gives a coded error."""
    from backends.onnx.write import to_model
    from frontends.onnx.load import load
    from ir.analysis.liveness import peak_memory
    from ir.base.diag import LadingError
    from ir.evaluate import kernels
    from ir.verify.stages import verify
    from passes.framework.instruments import VerifyEach
    from passes.framework.manager import PassManager
    from tools.diff.match import Differ
    from tools.inspect.summary import lines, summarize

    kernels.SECONDS = CHILD_SECONDS
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
    data = damage_model(case.rng, to_model(graph)).SerializeToString()
    return damage_bytes(case.rng, data) if case.rng.random() < 0.2 else data


def _stretched(case: Case) -> bytes:
    from backends.onnx.write import to_model

    model = stretch_model(case.rng, to_model(random_graph(case.rng, nodes=2)))
    return (
        damage_model(case.rng, model, 1).SerializeToString() if case.rng.random() < 0.2 else model.SerializeToString()
    )


def _lift(data: bytes, case: Case) -> None:
    from frontends.onnx.load import load

    path = case.folder / "model.onnx"
    path.write_bytes(data)
    use(load(path, free=case.rng.choice(["error", "input"])), case)


def _judge(data: bytes, case: Case) -> None:
    from tools.doctor.command import diagnose, releases_of

    path = case.folder / "model.onnx"
    path.write_bytes(data)
    diagnose(path, releases_of("all"))


# ---- facts ----


def _planned(case: Case) -> Graph:
    """A compiled decoder with its recorded decisions, some of them damaged."""
    from frontends.checkpoint.load import load
    from ir.graph.facts import build, data_of
    from passes.framework.manager import PassManager

    graph = load(checkpoint(case.samples, case.rng))
    PassManager(case.rng.choice(["infer-types,discover-inputs,assign-precision", "infer-types,discover-inputs"])).run(
        graph
    )
    for name in case.rng.sample(sorted(graph.facts), case.rng.randint(1, len(graph.facts))):
        graph.set_fact(name, build(name, damage_json(case.rng, data_of(graph.facts[name]))))
    return graph


def _use_facts(graph: Graph, case: Case) -> None:
    from passes.framework.manager import PassManager

    use(graph, case)
    PassManager("infer-types,assign-precision,insert-qdq,legalize-mnn").run(graph)


# ---- nodes ----


def _nodes(graph: Graph, case: Case) -> None:
    from ir.infer.engine import infer_types

    _told(lambda: infer_types(graph), "inference")
    use(graph, case)


DAMAGED_GRAPHS = (
    Target("damaged-text", "damaged text of a graph", _text, _parse),
    Target("damaged-onnx", "damaged ONNX models", _model, _lift),
    Target("stretched-onnx", "ONNX models that promise more than they hold", _stretched, _lift, seconds=60),
    Target("doctor-onnx", "damaged ONNX models, judged by the doctor", _model, _judge),
    Target("facts", "graphs with damaged decisions recorded on them", _planned, _use_facts),
    Target(
        "nodes",
        "nodes of every operator with inputs and attributes that may not fit",
        lambda case: random_nodes(case.rng),
        _nodes,
    ),
)
