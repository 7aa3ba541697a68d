"""A Hugging Face checkpoint to `ir.Graph`: find the folder, read its configuration, match its tensors, build the graph.

Only headers are read. Every tensor of the checkpoint is either used or named by the family as needless; whatever is
missing, left over, misshapen or stored in an unreadable type is reported by name, all of it at once.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from frontends.checkpoint.config_file import ModelConfig, read_config
from frontends.checkpoint.folder_kinds import refuse_quantized
from frontends.checkpoint.generation import read_generation
from frontends.checkpoint.hub import resolve
from frontends.checkpoint.match_tensors import Layout, make_layout
from frontends.containers.formats import open_weights
from frontends.families.llama import Family
from frontends.families.table import FAMILIES
from frontends.modules.decoder import build_decoder
from ir.base.diag import Diagnostic, LadingError, suggest
from ir.facts.model_card import ModelCard, RopeCard
from ir.graph.graph import Graph
from ir.tensor.base import Tensor

STORED_TYPES = ("bf16", "f16", "f32", "f64")
"""Element types a checkpoint may have."""

MAX_REPORTS = 12
"""Problems of one sort that are listed singly; the rest is counted."""


def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    families: Mapping[str, Family] = FAMILIES,
) -> Graph:
    """The graph of a checkpoint folder or hub repository; see `frontends.modules.decoder` for its form.

    Constants are recipes over the files, so the files must stay in place as long as the graph is used.

    What is known besides the graph is its `ir.facts.model_card.ModelCard`.

    Args:
        model: folder or hub name ``owner/name``.
        revision, cache_dir, offline: see `frontends.checkpoint.hub.resolve`.
        families: rows to choose from.

    Raises:
        LadingError: F500 to F509 and F563 to F566 for the place, F510 to F529 for the files, F530 to F541 and F561 for the
            configuration, F550 to F554 for the tensors, F570, F571 and U904 for the settings for generation.
    """
    folder = resolve(model, revision=revision, cache_dir=cache_dir, offline=offline)
    config = read_config(folder / "config.json", families)
    generation = read_generation(folder)
    stored = open_weights(folder)
    if not stored.tensors:
        raise LadingError("F512", "the files hold no tensor at all", str(folder), "fetch the checkpoint again")
    refuse_quantized({name: tensor.type.dtype.name for name, tensor in stored.tensors.items()}, folder)
    graph = build(config, stored.tensors, str(folder))
    local = os.path.isdir(os.path.expanduser(model))
    card = replace(
        ModelCard.of(graph),
        title=folder.resolve().name if local else os.fspath(model),
        sources=dict(stored.files),
        config_digest=config.digest,
        folder=str(folder),
        sampling=generation.given,
    )
    graph.set_fact(card.name, replace(card, warnings=(*card.warnings, *generation.warnings)))
    return graph


def build(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> Graph:
    """The graph of a configuration and the tensors of a checkpoint; errors F550 to F554 as in `load`."""
    layout = make_layout(config, tensors.keys(), where)
    layout = _tie(config, layout, tensors)
    _match(config, layout, tensors, where)
    graph = build_decoder(config, layout, tensors, "decoder")
    card = _card(config, layout, tensors)
    graph.set_fact(card.name, card)
    return graph


# ---- matching ----


def _tie(config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor]) -> Layout:
    """Use one matrix where both are stored, the file says they are tied, and they are equal.

    When they differ they are two matrices in spite of the configuration, as in the reference implementation.
    """
    if not config.tied or layout.head is None or layout.head not in tensors or layout.embed not in tensors:
        return layout
    if not _equal(tensors[layout.head], tensors[layout.embed]):
        return layout
    return layout.tied_to_embedding()


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.type != b.type:
        return False
    return all(
        np.array_equal(piece.view(np.uint8), b.rows(start, stop).view(np.uint8)) for start, stop, piece in a.pieces()
    )


def _match(config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor], where: str) -> None:
    """Compare the layout with the stored tensors and report every difference."""
    missing = [name for name in layout.shapes if name not in tensors]
    extra = [name for name in tensors if name not in layout.shapes and not _ignored(config, layout, name)]
    problems = [
        *_missing(config, layout, missing, extra, where),
        *_extra(config, layout, extra, missing, where),
        *_misfits(layout, tensors, where),
    ]
    if problems:
        raise LadingError.of(problems)


def _ignored(config: ModelConfig, layout: Layout, name: str) -> bool:
    family = config.family
    below = name.removeprefix(layout.prefix)
    if any(re.match(pattern, text) for pattern in family.ignore for text in (below, name)):
        return True
    if name in layout.needless:
        return True
    return family.extra_layers and _layer_index(config, below) >= len(config.layers)


def _layer_index(config: ModelConfig, below: str) -> int:
    found = re.match(rf"{re.escape(config.family.names.layers)}\.(\d{{1,9}})\.", below)
    return int(found[1]) if found else -1


def _missing(
    config: ModelConfig, layout: Layout, names: list[str], extra: Collection[str], where: str
) -> list[Diagnostic]:
    found = []
    for name in names[:MAX_REPORTS]:
        hint = suggest(name, list(extra)[:500])
        if name == layout.head and not config.tied:
            hint = "set tie_word_embeddings to true in config.json if the output matrix is the embedding"
        found.append(Diagnostic("F550", f"tensor {name} is missing", where, hint))
    return found + _rest("F550", "missing", len(names), where)


def _extra(
    config: ModelConfig, layout: Layout, names: list[str], missing: Collection[str], where: str
) -> list[Diagnostic]:
    found = []
    for name in names[:MAX_REPORTS]:
        hint = suggest(name, list(missing)[:500])
        if _layer_index(config, name.removeprefix(layout.prefix)) >= len(config.layers):
            hint = f"config.json says that the model has {len(config.layers)} layers (num_hidden_layers)"
        message = f"tensor {name} is not used by the {config.family.model_type} family"
        found.append(Diagnostic("F551", message, where, hint))
    return found + _rest("F551", "not used", len(names), where)


def _misfits(layout: Layout, tensors: Mapping[str, Tensor], where: str) -> list[Diagnostic]:
    shapes, dtypes = [], []
    for name, shape in layout.shapes.items():
        if name not in tensors:
            continue
        type_ = tensors[name].type
        if type_.shape != shape:
            message = f"tensor {name} has shape {list(type_.shape or ())}, but config.json calls for {list(shape)}"
            shapes.append(Diagnostic("F552", message, tensors[name].loc))
        if type_.dtype.name not in STORED_TYPES:
            hint = "quantized checkpoints are not read; start from the bf16, fp16 or fp32 one"
            message = f"tensor {name} is stored as {type_.dtype}, not as one of {', '.join(STORED_TYPES)}"
            dtypes.append(Diagnostic("F553", message, tensors[name].loc, hint))
    return [
        *shapes[:MAX_REPORTS],
        *_rest("F552", "misshapen", len(shapes), where),
        *dtypes[:MAX_REPORTS],
        *_rest("F553", "of a type that is not read", len(dtypes), where),
    ]


def _rest(code: str, what: str, count: int, where: str) -> list[Diagnostic]:
    more = count - MAX_REPORTS
    return [Diagnostic(code, f"{more} more tensors are {what}", where)] if more > 0 else []


# ---- description ----


def _card(config: ModelConfig, layout: Layout, tensors: Mapping[str, Tensor]) -> ModelCard:
    from frontends.modules.rope import table

    frequencies = table(config.rope)
    return ModelCard(
        family=config.family.model_type,
        model_type=config.family.model_type,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=len(config.layers),
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_position=config.max_position,
        context=config.context,
        parameters=sum(math.prod(shape) for shape in layout.shapes.values()),
        tied=layout.head is None,
        windows=tuple(layer.window for layer in config.layers),
        rope=RopeCard(
            kind=config.rope.kind,
            theta=config.rope.theta,
            width=config.rotary_dim,
            factor=config.rope.factor,
            attention_factor=frequencies.attention_factor,
            steady=frequencies.variant.limit if frequencies.variant is not None else None,
            layers=tuple(layer.rope for layer in config.layers),
        ),
        dtypes=tuple(sorted({tensors[name].type.dtype.name for name in layout.shapes})),
        warnings=tuple(config.warnings),
        unread=config.unread,
    )


# ---- numbers ----


def zero_weights(graph: Graph) -> list[Diagnostic]:
    """A warning of matrices and gains without a number but zero, which a download that stopped leaves behind.

    Loading reads no numbers. This reads three rows of each tensor, and all of those that have nothing but zeros there.
    """
    weights = {value.name: value.tensor for value in graph.consts.values() if value.name.endswith(".weight")}
    found = [name for name, tensor in weights.items() if _is_zero(tensor)]
    if not found:
        return []
    verb = "is" if len(found) == 1 else "are"
    message = f"{len(found)} of {len(weights)} weights {verb} zero everywhere, such as {found[0]}"
    hint = "unless this is meant, fetch the checkpoint again: downloads that stop leave zeros"
    return [Diagnostic("F575", message, ModelCard.of(graph).folder or "", hint, "warning")]


def _is_zero(tensor: Tensor) -> bool:
    count = (tensor.type.sizes or (1,))[0]
    few = (tensor.rows(at, at + 1) for at in sorted({0, count // 2, count - 1}))
    if any(row.any() for row in few):
        return False
    return not any(piece.any() for _, _, piece in tensor.pieces())
