"""The contract of an MNN model directory, written from the objects that the model itself was written from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import backends.contract as c
from backends import described
from backends.backend import Made
from backends.mnn.card import completed
from backends.mnn.sampling.translate import lost_on
from backends.mnn.streamed import streamed
from backends.mnn.target.releases import MnnTarget
from backends.mnn.write import configs
from backends.mnn.write.llm_folder import Emission
from backends.mnn.write.mapped import REASON as MAPPED
from backends.mnn.write.weight_layout import Matrix
from ir.base.types import Dim
from ir.facts.inputs import DynamicInputs
from ir.facts.model_card import ModelCard
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph, Value
from ir.quant.storage import Storage

if TYPE_CHECKING:
    from backends.mnn.chat.report import ChatReport
    from backends.mnn.verify.logits import Measurement


def make_contract(
    graph: Graph,
    emission: Emission,
    *,
    target: MnnTarget,
    made: Made,
    errors: Mapping[str, tuple[float, float]],
    measurements: Sequence[Measurement],
    executor: Executor,
    tried: Sequence[str] = (),
    chat: ChatReport | None = None,
) -> c.Contract:
    """The contract of what was just emitted.

    Args:
        graph: the graph that was emitted.
        emission: what was written.
        target: the releases promised.
        made: how the graph came to be.
        errors: relative RMS and largest absolute error by weight, where measured.
        measurements: real runs.
        executor: digests files in parallel.
        tried: releases on which tokens were sampled.
        chat: what became of the chat template; None without one.
    """
    card = completed(graph)
    entries = executor.map(
        lambda item: c.FileEntry.of(emission.folder, item[0], item[1], emission.digests.get(item[0])),
        sorted(emission.roles.items()),
    )
    return c.Contract(
        compiler=described.compiler(),
        target=c.Target(profile=target.name, releases=target.versions),
        model=described.model(card),
        sources=described.sources(card.sources),
        config_digest=card.config_digest,
        raised=described.raised(graph),
        signature=_signature(graph, emission, target, card),
        files=tuple(entries),
        weights=tuple(_weights(graph, emission, errors)),
        pipeline=described.pipeline(made),
        calibration=described.calibration(graph),
        runtime=_runtime(graph, emission, target, measurements),
        tokenizer=_tokenizer(emission, target),
        generation=_generation(emission, tried),
        chat=chat.contract() if chat is not None else None,
        verified=tuple(_verification(item) for item in measurements),
        warnings=described.notices(made),
        verdict=described.verdict(made),
    )


_DIM_MEANING = {
    "seq": "tokens of this call",
    "rows": "positions whose logits are returned",
    "kv": "tokens in the cache and tokens of this call",
    "past": "tokens in the cache",
}


def _signature(graph: Graph, emission: Emission, target: MnnTarget, card: ModelCard) -> c.Signature:
    fact = graph.required_fact(DynamicInputs)
    found = {item.input: item for item in fact.discoveries}
    inputs = tuple(_input(value, found[value.name], emission, card.context) for value in graph.inputs)
    outputs = tuple(
        c.Output(
            name=value.name,
            dtype=value.dtype.name,
            shapes=(c.ShapeForm(shape=described.shape(value)),),
            meaning="unnormalised scores of the next token",
        )
        for value in graph.outputs
    )
    ports: tuple[c.Input | c.Output, ...] = (*inputs, *outputs)
    used = {axis for port in ports for form in port.shapes for axis in form.shape if isinstance(axis, str)}
    used |= {"past"}
    limit = card.context
    dims = {name: _dimension(name, graph.dims.get(name), limit) for name in sorted(used)}
    if "kv" in dims:
        dims["kv"] = c.Dimension(low=1, high=limit, sum_of=("past", "seq"), meaning=_DIM_MEANING["kv"])
    state = None
    if fact.keeps_cache:
        layers = card.layers or 0
        per_token = 2 * layers * (card.kv_heads or 0) * (card.head_dim or 0) * 4
        state = c.KVCache(layers=layers, dtype="f32", bytes_per_token=per_token, past="past")
    return c.Signature(inputs=inputs, outputs=outputs, dims=dims, state=state)


def _dimension(name: str, dim: Dim | None, limit: int | None) -> c.Dimension:
    low = dim.low if dim is not None else (0 if name == "past" else 1)
    high = limit if dim is None or dim.high is None else dim.high
    return c.Dimension(low=low, high=high, meaning=_DIM_MEANING.get(name, name))


def _input(value: Value, found: Any, emission: Emission, context: int | None) -> c.Input:
    own = described.shape(value)
    shapes = [own]
    for shape in found.shapes:
        concrete = tuple(own[shape.index(axis)] if axis == "hidden" else axis for axis in shape)
        if concrete not in shapes:
            shapes.append(concrete)
    limits = None
    if value.dtype.is_integer and (found.low is not None or found.high is not None):
        high = found.high if found.kind != "positions" else context - 1 if context is not None else None
        limits = c.ValueRange(min=found.low, max=high)
    own_input = value.name in emission.declared
    discovery = c.Discovery(by=emission.declared_by, kind=found.why, reason=found.reason, node=found.node or None)
    return c.Input(
        name=value.name,
        dtype=value.dtype.name,
        shapes=tuple(c.ShapeForm(shape=shape) for shape in shapes),
        meaning=found.meaning,
        default=found.default,
        values=limits,
        discovered=None if own_input else discovery,
    )


def _weights(graph: Graph, emission: Emission, errors: Mapping[str, tuple[float, float]]) -> list[c.WeightEntry]:
    layout = emission.layout
    entries = [weight_entry(matrix, errors) for matrix in layout.matrices.values()]
    table = graph.tables.get("embedding")
    if table is None:
        return entries
    name = table.name
    if layout.embedding_file is not None:
        weight = layout.embedding_file
        made = "cast" if weight.columns == completed(graph).hidden_size else "split"
        storage = c.Storage.of(weight.storage, "rows-bf16", floats=made)
        size = 2 * weight.rows * weight.columns
        shape = (weight.rows, weight.columns)
        entries.append(
            c.WeightEntry(name=name, file=configs.EMBEDDING, offset=0, bytes=size, shape=shape, storage=storage)
        )
    elif layout.embedding is not None:
        matrix = layout.embedding
        owner = next((item.name for item in entries if item.offset == matrix.offset), None)
        shared_with = owner if layout.embedding_shared else None
        entries.append(replace(weight_entry(matrix, errors), name=name, shared_with=shared_with))
    return entries


def weight_entry(
    matrix: Matrix, errors: Mapping[str, tuple[float, float]], file: str = configs.WEIGHTS
) -> c.WeightEntry:
    """The entry of a matrix in a weight file; `errors` are those that were measured, by weight."""
    weight = matrix.weight
    measured = errors.get(weight.name)
    return c.WeightEntry(
        name=weight.name,
        file=file,
        offset=matrix.offset,
        bytes=matrix.bias_offset - matrix.offset,
        shape=(weight.rows, weight.columns),
        storage=c.Storage.of(weight.storage, "mnn-dense-codes" if weight.storage.is_integer else f"mnn-f{weight.bits}"),
        error=c.WeightError(rms_relative=measured[0], max_abs=measured[1]) if measured is not None else None,
        from_bits=weight.came_in,
    )


def _runtime(graph: Graph, emission: Emission, target: MnnTarget, measurements: Sequence[Measurement]) -> c.Runtime:
    storage = _planned(graph, emission)
    integer = any(item.bits <= 8 for item in storage)
    keys = {
        "attention_mask": "the default, int, is computed wrongly when tokens follow a history",
        "hidden_size": "width of an embedding row",
    }
    if emission.layout.embedding is not None or emission.copied_table:
        keys["tie_embeddings"] = "where the embedding rows lie; without it they are uninitialised memory"
    settings = emission.settings
    keys |= dict.fromkeys(emission.mapped, MAPPED)
    return c.Runtime(
        requires=c.Requirements(min_release=target.versions[0], memory=settings.memory if integer else None, keys=keys),
        settings={**settings.as_run(), "backend_type": emission.backend_type, **emission.mapped},
        choices=tuple(_choices(measurements, configs.recommend(configs.deciding(graph)))),
        streamed=streamed(graph, emission.layout, target.devices),
    )


def _planned(graph: Graph, emission: Emission) -> list[Storage]:
    """How the weights are stored: as planned, and as they are where they came stored or the model was only read."""
    plan = graph.fact(PrecisionPlan)
    planned = dict(plan.storage) if plan is not None else {}
    found = {matrix.weight.name: matrix.weight.storage for matrix in emission.layout.matrices.values()}
    return list({**found, **planned}.values())


_FLOATS = "weights stay floats, and activations too"
_ROWS = "codes stay packed; activations are rounded to 8 bits by row"
_BLOCKS = "codes stay packed; activations are rounded to 8 bits by block of the weight"
_EXPANDED = "weights are expanded to floats when loading: more memory, slower decoding, exact activations"
_NOTES = {
    (integers, low, blocks): _FLOATS if not integers else _EXPANDED if not low else _BLOCKS if blocks else _ROWS
    for integers in (True, False)
    for low in (True, False)
    for blocks in (True, False)
}
"""What settings mean, by: weights are stored as integers, memory is low, activations are quantized by block."""


def _choices(measurements: Sequence[Measurement], best: configs.Recommendation) -> list[c.Choice]:
    """What every measured choice of settings costs against the original model, the least first."""
    found = []
    for item in measurements:
        if item.reference != "float":
            continue
        settings = run_settings(item.settings)
        note = _NOTES[best.memory == "low", settings.memory == "low", settings.dynamic_option == 2]
        wanted = (best.memory, best.precision, best.dynamic_option)
        chosen = (settings.memory, settings.precision, settings.dynamic_option) == wanted
        found.append(
            c.Choice(
                settings=settings,
                kl=item.distance.kl,
                top1=item.distance.top1,
                perplexity=item.perplexity,
                recommended=chosen,
                note=f"{note}. {best.reason[0].upper()}{best.reason[1:]}" if chosen else note,
            )
        )
    return sorted(found, key=lambda choice: choice.kl)


_NAMED = ("memory", "precision", "thread_num", "dynamic_option")
"""Settings that have a field of their own in the record of a run."""
_PLACES = ("backend_type", "tmp_path")
"""Keys of a configuration that say where things are done, which are no part of that record."""


def run_settings(settings: Mapping[str, Any]) -> c.RunSettings:
    """The record of the settings of a run, given as keys of the configuration."""
    return c.RunSettings(
        memory=settings["memory"],
        precision=settings["precision"],
        threads=settings["thread_num"],
        dynamic_option=settings.get("dynamic_option", 0),
        others={key: value for key, value in settings.items() if key not in (*_NAMED, *_PLACES)},
    )


def _tokenizer(emission: Emission, target: MnnTarget) -> c.Tokenizer | None:
    written = emission.tokenizer
    assert written is not None
    if not written.kind:
        return None
    files, inexact = [], []
    for name, reasons, exact in (
        (written.exact, written.exact_reasons, True),
        (written.text, written.text_reasons, False),
    ):
        if not name:
            continue
        # Where there is no exact form, every release reads the text.
        releases = tuple(item.version for item in target.releases if not written.exact or item.mtok is exact)
        files.append(c.TokenizerFile(file=name, releases=releases))
        compared = not exact and written.compared > 0
        if reasons or (compared and written.differing):
            counts = (written.differing, written.compared) if compared else (None, None)
            inexact.append(c.Inexact(releases=releases, differing=counts[0], of=counts[1], reasons=tuple(reasons)))
    return c.Tokenizer(form=written.kind, files=tuple(files), inexact=tuple(inexact))


def _generation(emission: Emission, tried: Sequence[str]) -> c.Generation | None:
    written = emission.tokenizer
    if not emission.samplers or written is None:
        return None
    samplers = []
    for name, (releases, sampler) in emission.samplers.items():
        keys = dict(sampler.config)
        biases = keys.pop("logit_bias", {})
        versions = tuple(release.version for release in releases)
        samplers.append(c.SamplerFile(file=name, releases=versions, mode=sampler.mode, keys=keys, logit_bias=biases))
    ends = [c.EndToken(id=end.id, text=end.text, sources=tuple(end.sources)) for end in written.ends]
    lost = [
        c.LostSetting(
            setting=item.lost.setting,
            value=json.dumps(item.lost.value),
            releases=item.releases,
            reason=item.lost.reason,
        )
        for item in lost_on(list(emission.samplers.values()))
    ]
    return c.Generation(
        samplers=tuple(samplers),
        ends=tuple(ends),
        lost=tuple(lost),
        unused=next(iter(emission.samplers.values()))[1].unused,
        tried=tuple(tried),
    )


def _verification(item: Measurement) -> c.Verification:
    return c.Verification(
        release=item.release,
        platform=item.platform,
        settings=run_settings(item.settings),
        reference=item.reference,
        prompt_tokens=item.prompt_tokens,
        max_abs_error=item.distance.max_abs,
        kl=item.distance.kl,
        top1=item.distance.top1,
        perplexity=item.perplexity,
        perplexity_reference=item.perplexity_reference,
        kl_predicted=item.kl_predicted,
        perplexity_predicted=item.perplexity_predicted,
        decode_tokens=item.decode_tokens,
        decode_equal_tokens=item.decode_equal,
        decode_close_tokens=item.decode_close,
    )


__all__ = ["make_contract", "weight_entry"]
