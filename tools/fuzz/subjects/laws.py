"""Laws that hold for every graph, pipeline and contract that is right."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.fuzz.inputs.random_graphs import ODD_NAMES, decorate, layered_graph, random_graph
from tools.fuzz.target import Case, Target, require

if TYPE_CHECKING:
    from ir.analysis.repeats import Repeat
    from ir.graph.graph import Graph
    from passes.framework.options import OptionSpec

_EXACT = ("infer-types", "fold", "simplify", "cse", "dce", "toposort", "join-linears")
"""Passes for graphs of any kind that keep all numbers."""


def _any_graph(case: Case) -> Graph:
    graph = layered_graph(case.rng) if case.rng.random() < 0.3 else random_graph(case.rng, own=True)
    return decorate(graph, case.rng)


def reads_back(graph: Graph, base: Path | None = None) -> str:
    """The text of a graph, which must be read as the same graph and written as the same text."""
    from ir.graph.compare import differences
    from ir.text.parser import parse
    from ir.text.printer import print_graph

    text = print_graph(graph, base=base)
    again = parse(text, base=base)
    found = differences(graph, again, locs=True)
    require(not found, f"the graph that is read differs from the one that was printed: {found[:1]}")
    require(print_graph(again, base=base) == text, "the graph that is read prints otherwise")
    return text


def _text(graph: Graph, case: Case) -> None:
    reads_back(graph)


def _computable(case: Case) -> Graph:
    return layered_graph(case.rng) if case.rng.random() < 0.3 else random_graph(case.rng, own=True)


def _numbers(graph: Graph, case: Case) -> None:
    from ir.base.diag import LadingError
    from ir.evaluate.evaluator import evaluate
    from ir.evaluate.random_feeds import sample_feeds
    from passes.framework.check_numbers import CheckNumbers
    from passes.framework.instruments import VerifyEach
    from passes.framework.manager import PassManager

    try:
        evaluate(graph, sample_feeds(graph), threads=1)
    except LadingError as error:
        # onnxruntime loses a pair of casts whose result nothing but a branch reads.
        require(error.code == "T220", f"a sound graph cannot be computed: {error}")
        return
    chosen = case.rng.sample(_EXACT, case.rng.randint(1, 4))
    pipeline = "canonicalize" if case.rng.random() < 0.5 else ",".join(["infer-types", *chosen])
    PassManager(pipeline, [VerifyEach(), CheckNumbers(seed=case.seed)]).run(graph)


def _repeats(graph: Graph, case: Case) -> None:
    from ir.analysis.repeats import repeats

    taken: set[Any] = set()
    for repeat in repeats(graph, minimum=case.rng.choice([1, 2, 4])):
        _corresponding(repeat)
        for block in repeat.blocks:
            require(not taken & set(block.nodes), "a node is in two blocks")
            taken.update(block.nodes)


def _corresponding(repeat: Repeat) -> None:
    first = repeat.blocks[0]
    for before, after in zip(repeat.blocks, repeat.blocks[1:], strict=False):
        require(before.exit is after.entry, "two blocks do not meet")
    for block in repeat.blocks:
        partner: dict[Any, Any] = {None: None, first.entry: block.entry, first.exit: block.exit}
        pairs = [*zip(first.constants, block.constants, strict=True), *zip(first.reads, block.reads, strict=True)]
        partner.update(pairs)
        for one, two in zip(first.nodes, block.nodes, strict=True):
            require(one.op == two.op, "partners have different operators")
            partner.update(zip(one.outputs, two.outputs, strict=True))
        for one, two in zip(first.nodes, block.nodes, strict=True):
            require([partner[value] for value in one.inputs] == list(two.inputs), "partners read other values")
        require(len(set(partner.values())) == len(partner), "two values have one partner")
        require(all(one.is_const == two.is_const for one, two in pairs), "a constant has a partner that is none")


def _unbounded(case: Case) -> Graph:
    """A graph without ranges of dimensions, for which the format has no place."""
    from ir.base.types import Dim

    return random_graph(case.rng, rows=Dim("n"))


def _onnx(graph: Graph, case: Case) -> None:
    from backends.onnx.write import to_model, write
    from frontends.onnx.load import load
    from ir.graph.compare import differences

    again = load(to_model(graph))
    found = differences(graph, _without_notes(again))
    require(not found, f"the lifted graph differs from the exported one: {found[:1]}")
    path = case.folder / "model.onnx"
    write(graph, path, external=case.rng.choice([None, True, False]))
    found = differences(graph, _without_notes(load(path)))
    require(not found, f"the graph read from the file differs: {found[:1]}")


def _without_notes(graph: Graph) -> Graph:
    """Drop what the format has and the IR has not, which lifting keeps as metadata."""
    from ir.onnx.keys import MODEL

    for inner in {graph, *(body for node in graph.walk() for body in node.subgraphs)}:
        inner.metadata.pop(MODEL, None)
    return graph


# ---- pipelines ----


def _pipeline(case: Case) -> str:
    """Text of a pipeline with random options, as the passes write them."""
    from passes.framework.registry import default_registry

    return ",".join(_step(default_registry(), case.rng) for _ in range(case.rng.randint(1, 4)))


def _step(registry: Any, rng: random.Random, depth: int = 2) -> str:
    if depth and rng.random() < 0.15:
        inner = ",".join(_step(registry, rng, depth - 1) for _ in range(rng.randint(1, 3)))
        return f"repeat{{max={rng.randint(1, 9)}}}({inner})"
    info = registry.describe(rng.choice(sorted(registry.passes)))
    options = [spec.write(_option(spec, rng)) for spec in info.options if spec.required or rng.random() < 0.4]
    return info.name + (f"{{{' '.join(options)}}}" if options else "")


def _option(spec: OptionSpec, rng: random.Random) -> Any:
    if spec.optional and rng.random() < 0.2:
        return None
    if spec.many:
        return tuple(_one_value(spec, rng) for _ in range(rng.randint(0, 3)))
    return _one_value(spec, rng)


def _one_value(spec: OptionSpec, rng: random.Random) -> Any:
    texts = [name for name in ODD_NAMES if name != "\ud800"]
    low = spec.low if spec.low is not None else -5
    high = spec.high if spec.high is not None else low + 1000
    makers = {
        "bool": lambda: rng.random() < 0.5,
        "int": lambda: rng.randint(int(low), int(high)),
        "float": lambda: rng.choice([float(low), float(high), rng.uniform(low, high), low + 1e-9]),
        "str": lambda: spec.default if isinstance(spec.default, str) and rng.random() < 0.5 else rng.choice(texts),
        "path": lambda: Path(rng.choice([name for name in texts if "\x00" not in name])),
        "choice": lambda: rng.choice(spec.choices),
    }
    return makers[spec.kind]()


def _pipeline_text(text: str, case: Case) -> None:
    from ir.base.diag import LadingError
    from passes.framework.load import parse

    try:
        pipeline = parse(text)
    except LadingError as error:
        # Options may contradict each other, which is found when the pass is built, or hold a malformed pattern.
        require(error.code != "P300", f"a written option is not read: {error}")
        return
    require(parse(str(pipeline)) == pipeline, f"the pipeline is read back as another one: {pipeline}")
    require(str(parse(str(pipeline))) == str(pipeline), "the pipeline has two spellings")


LAWS = (
    Target("text", "a graph is read back from its text as it was", _any_graph, _text, refuses=False),
    Target("passes", "exact passes keep the numbers and the form of a graph", _computable, _numbers, refuses=False),
    Target("repeats", "repeated blocks correspond node by node", lambda case: layered_graph(case.rng), _repeats, False),
    Target("onnx", "a graph written as ONNX is read back as it was", _unbounded, _onnx, refuses=False),
    Target("pipeline", "a pipeline is read back from its text as it was", _pipeline, _pipeline_text, refuses=False),
)
