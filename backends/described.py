"""The parts of a contract that follow from the graph, its model card and its passes, whatever the backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import backends.contract as c
from backends.backend import Made
from backends.version import compiler_version
from ir.base.types import Dim, TensorType
from ir.facts.calibration import Calibration
from ir.facts.free_tensors import FreeTensor, FreeTensors
from ir.facts.model_card import AdapterCard, ModelCard, SourceFile
from ir.facts.precision import PrecisionPlan
from ir.facts.raised import Raised
from ir.facts.tuning import Tuning
from ir.graph.graph import Graph, Value


def compiler() -> c.Compiler:
    """This program."""
    return c.Compiler(name="lading", version=compiler_version())


def model(card: ModelCard) -> c.Model:
    """The figures of a model; those that are not known are null."""
    return c.Model(
        name=card.title or "model",
        family=card.family,
        layers=card.layers,
        hidden=card.hidden_size,
        heads=card.heads,
        kv_heads=card.kv_heads,
        head_dim=card.head_dim,
        vocab=card.vocab_size,
        max_position=card.context,
        parameters=card.parameters,
        adapters=tuple(_adapter(item) for item in card.adapters),
    )


def _adapter(card: AdapterCard) -> c.Adapter:
    """An adapter as contracts tell of it: by its name, and not by where it lay on this machine."""
    folder = Path(card.folder)
    return c.Adapter(
        name=folder.name if Path(card.name).expanduser().is_dir() else card.name,
        weight=card.weight,
        base=card.base,
        rank=card.rank,
        tensors=card.tensors,
        files=tuple(c.AdapterFile(file=name, digest=digest) for name, digest in card.digests.items()),
    )


def sources(rows: Mapping[str, SourceFile]) -> tuple[c.Source, ...]:
    """The files that a model was read from."""
    return tuple(
        c.Source(file=name, bytes=row.bytes, digest=row.digest, digest_of=row.digest_of) for name, row in rows.items()
    )


def raised(graph: Graph) -> c.Raised | None:
    """What an exported graph was found to be; None where nobody had to find it out."""
    fact = graph.fact(Raised)
    if fact is None:
        return None
    inputs, outputs = (
        tuple(
            c.Port(name=one.name, kind=one.kind, evidence=one.evidence, dtype=one.dtype, shape=one.shape)
            for one in side
        )
        for side in (fact.inputs, fact.outputs)
    )
    regions = tuple(
        c.Region(
            kind=one.kind,
            where=one.where,
            nodes=one.nodes,
            finding=one.finding,
            parameters=dict(one.parameters),
            difference=one.difference,
            probes=one.probes,
        )
        for one in fact.regions
    )
    return c.Raised(inputs=inputs, outputs=outputs, regions=regions)


def pipeline(made: Made) -> c.Pipeline:
    """The passes that made the graph."""
    rows = tuple(c.PassCounts(name=name, counts=dict(counts)) for name, counts in made.passes)
    return c.Pipeline(text=made.pipeline, passes=rows)


def notices(made: Made) -> tuple[c.Notice, ...]:
    """The warnings."""
    return tuple(
        c.Notice(code=item.code, message=item.message, where=item.where, hint=item.hint) for item in made.warnings
    )


def verdict(made: Made) -> c.Verdict | None:
    """What the compilation ends with."""
    found = made.verdict
    if found is None:
        return None
    return c.Verdict(
        outcome=found.outcome,
        text=found.text,
        original=found.original or None,
        original_note=found.original_note,
        unread={weight: tuple(keys) for weight, keys in sorted(found.unread.items())},
    )


def calibration(graph: Graph) -> c.Calibration | None:
    """The text that passes looked at, and what it promised; None when none did."""
    fact = graph.fact(Calibration)
    if fact is None:
        return None
    plan = graph.required_fact(PrecisionPlan)
    made = c.Calibration(tokens=fact.tokens, digest=fact.digest, unreached=dict(fact.instead), steps=_steps(graph))
    found = plan.outcome
    if found is None:
        return made
    return replace(made, limit=found.limit, kl_predicted=found.predicted, kl=found.measured)


def _steps(graph: Graph) -> tuple[c.TuningStep, ...]:
    """What was tried after the choice of widths."""
    return tuple(
        c.TuningStep(
            step=step.step,
            tokens=step.tokens,
            kl_before=step.before,
            kl_after=step.after,
            positions=step.positions,
            kept=step.kept,
        )
        for step in (graph.fact(Tuning) or Tuning()).steps
    )


def shape(value: Value) -> tuple[int | str, ...]:
    """The axes of a value as a contract has them; sizes that nobody knows are named after their place."""
    assert isinstance(value.type, TensorType) and value.type.shape is not None, value
    return tuple(
        dim if isinstance(dim, int) else dim.name if isinstance(dim, Dim) else f"{value.name}.{place}"
        for place, dim in enumerate(value.type.shape)
    )


def signature(graph: Graph) -> c.Signature:
    """The inputs and outputs of a graph as they are, for runtimes that feed what the model asks for."""
    values = (*graph.inputs, *graph.outputs)
    dims = {axis: _dimension(graph.dims.get(axis), axis) for value in values for axis in shape(value)
            if isinstance(axis, str)}  # fmt: skip

    def port(value: Value) -> dict[str, Any]:
        return {"name": value.name, "dtype": value.dtype.name, "shapes": (c.ShapeForm(shape=shape(value)),)}

    free = graph.fact(FreeTensors)
    found = {value: free.find(value.name) if free is not None else None for value in graph.inputs}
    return c.Signature(
        inputs=tuple(c.Input(**port(value), **_asked(found[value])) for value in graph.inputs),
        outputs=tuple(c.Output(**port(value), meaning="as in the source model") for value in graph.outputs),
        dims=dict(sorted(dims.items())),
    )


def _asked(free: FreeTensor | None) -> dict[str, Any]:
    """What an input means; of one that the source reads and never makes, what its readers say."""
    if free is None:
        return {"meaning": "as in the source model"}
    limits = c.ValueRange(min=free.low, max=free.high) if free.low is not None or free.high is not None else None
    node = free.readers[0] if free.readers else None
    return {
        "meaning": free.reason,
        "default": free.default,
        "values": limits,
        "discovered": c.Discovery(by="onnx", kind="dangling", reason=free.reason, node=node),
    }


def _dimension(dim: Dim | None, name: str) -> c.Dimension:
    if dim is None:
        return c.Dimension(low=0, meaning=name)
    return c.Dimension(low=dim.low, high=dim.high, multiple_of=dim.multiple_of, meaning=name)


__all__ = [
    "calibration", "compiler", "model", "notices", "pipeline", "raised", "shape", "signature", "sources", "verdict",
]  # fmt: skip
