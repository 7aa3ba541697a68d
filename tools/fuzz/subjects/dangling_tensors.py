"""Models that read what nothing makes, or that choose rows of their logits themselves, sound and damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tools.fuzz.inputs.mutate_onnx import damage_model
from tools.fuzz.inputs.random_graphs import random_graph
from tools.fuzz.inputs.row_choices import KINDS, ORIGINS, PLACES, choosing, decoder
from tools.fuzz.inputs.samples import checkpoint
from tools.fuzz.target import Case, Target, require

if TYPE_CHECKING:
    from ir.graph.graph import Graph

NAMES = ("logits_index", "attention_mask", "position_ids", "rows.end", "r")
TOKENS = 7
DISCOVER = "infer-types,discover-inputs"


def _chosen(case: Case) -> Any:
    """A decoder that chooses rows, and the one that it was made from."""
    model = decoder(checkpoint(case.samples, case.rng))
    place, kind, origin = (case.rng.choice(table) for table in (PLACES, KINDS, ORIGINS))
    return choosing(model, place, kind, origin, case.rng.choice(NAMES)), model


def _one_choice(models: Any, case: Case) -> None:
    """The runtime's choice is the only one, and gives the rows of the model that chooses none."""
    import numpy as np

    from frontends.onnx.load import load
    from ir.evaluate.evaluator import evaluate
    from ir.facts.inputs import DynamicInputs
    from passes.framework.manager import PassManager

    choosing_model, plain = models
    graph, whole = load(choosing_model), load(plain)
    ids = np.array([case.rng.randrange(200) for _ in range(TOKENS)])
    (wanted,) = evaluate(whole, {whole.inputs[0].name: ids[None]}).values()
    PassManager(DISCOVER).run(graph)
    fact = graph.required_fact(DynamicInputs)
    for index in (0, -1):
        (got,) = evaluate(graph, fact.feeds(graph, ids, index=index)).values()
        law = f"the rows from {index} on are those of the model that chooses none"
        require(got.shape == wanted[:, index:].shape and np.allclose(got, wanted[:, index:], atol=1e-4), law)


def _damaged(case: Case) -> Any:
    model, _ = _chosen(case)
    return _lacking(case, damage_model(case.rng, model) if case.rng.random() < 0.7 else model)


def _lacking(case: Case, model: Any) -> Any:
    """The model without some of what makes its tensors."""
    made = type(model)()
    made.CopyFrom(model)
    for part in (made.graph.node, made.graph.initializer, made.graph.input, made.graph.value_info):
        for _ in range(case.rng.choice([0, 0, 1, 2])):
            if len(part):
                del part[case.rng.randrange(len(part))]
    return made


def _discover(model: Any, case: Case) -> None:
    """Discovery works or is refused; what it leaves is fed by the runtime, and is checked."""
    from frontends.onnx.load import load
    from ir.facts.inputs import DynamicInputs
    from ir.target.signature import signature
    from ir.verify.stages import verify
    from passes.framework.manager import PassManager

    graph = load(model)
    PassManager(DISCOVER).run(graph)
    fact = graph.required_fact(DynamicInputs)
    _require_sound(graph)
    wrong = [item for item in verify(graph, "signature") if item.code in ("I133", "I190")]
    require(not wrong, f"what is recorded of the inputs holds: {wrong[:1]}")
    if fact.signature:
        fed = {item.name for item in signature(fact.signature).inputs}
        require({value.name for value in graph.inputs} <= fed, "the runtime feeds every input")


def _general(case: Case) -> Any:
    from backends.onnx.write import to_model

    model = to_model(random_graph(case.rng, nodes=6))
    return _lacking(case, damage_model(case.rng, model) if case.rng.random() < 0.3 else model)


def _declare(model: Any, case: Case) -> None:
    """Every tensor that is read is declared with a type, or refused."""
    from ir.base.types import TensorType
    from tools.embed import declare_inputs, lift

    declared = declare_inputs(model)
    for graph in (lift(declared.model, free="error"), lift(model)):
        types = {value.name: value.type for value in graph.inputs}
        for tensor in declared.tensors:
            if tensor.kind == "input":
                require(isinstance(types[tensor.name], TensorType), "an input of a known element type is declared")
    _require_sound(lift(model))


def _require_sound(graph: Graph) -> None:
    from ir.verify.stages import verify

    broken = [item for item in verify(graph) if item.severity == "error" and item.code.startswith("I1")]
    require(not broken, f"the graph holds together: {broken[:1]}")


DANGLING = (
    Target(
        "chosen-rows", "decoders that choose rows of their logits in every way", _chosen, _one_choice, refuses=False
    ),
    Target("damaged-decoders", "damaged decoders that choose rows or lack tensors", _damaged, _discover),
    Target("lacking-tensors", "random graphs in which tensors are read and never made", _general, _declare),
)
