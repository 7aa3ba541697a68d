"""A Hugging Face checkpoint to `ir.Graph`: find the folder, read its configuration, match its tensors, build the graph.

Only headers are read. Every tensor of the checkpoint is either used or named by the family as needless; whatever is
missing, left over, misshapen or stored in an unreadable type is reported by name, all of it at once.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from frontends.checkpoint.config_file import read_config
from frontends.checkpoint.folder_kinds import refuse_quantized
from frontends.checkpoint.generation import read_generation
from frontends.checkpoint.hub import resolve
from frontends.checkpoint.tasks import refuse_other_tasks
from frontends.containers.formats import open_weights
from frontends.families.decoder import build_decoder
from frontends.families.model_config import ModelConfig
from frontends.families.places import TOWER, Places, find_places
from frontends.families.scheme import Family
from frontends.families.table import FAMILIES
from frontends.parts.stored import Stored
from ir.base.diag import Diagnostic, LadingError
from ir.facts.model_card import AdapterCard, ModelCard, RopeCard
from ir.graph.graph import Graph
from ir.tensor.base import Tensor


def load(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    lora: Sequence[tuple[str, float]] = (),
    families: Mapping[str, Family] = FAMILIES,
) -> Graph:
    """The graph of a checkpoint folder or hub repository; see `frontends.families.decoder` for its form.

    Constants are recipes over the files, so the files must stay in place as long as the graph is used.

    What is known besides the graph is its `ir.facts.model_card.ModelCard`.

    Args:
        model: folder or hub name ``owner/name``.
        revision, cache_dir, offline: see `frontends.checkpoint.hub.resolve`.
        lora: adapters to merge into the weights, one after the other: folder or hub name, and weight.
        families: rows to choose from.

    Raises:
        LadingError: F500 to F509, F563 to F566 and F594 for the place, F510 to F529 for the files, F535, F577, F578 and F581
            for quantized tensors, F530 to F541 and F561 for the configuration, F550 to F554 for the tensors, F590 to F592
            for adapters, F570, F571 and U904 for the settings for generation.
    """
    folder = resolve(model, revision=revision, cache_dir=cache_dir, offline=offline)
    stored = open_weights(folder)
    refuse_other_tasks(folder, stored.tensors.keys())
    config = read_config(folder / "config.json", families)
    generation = read_generation(folder)
    if not stored.tensors:
        raise LadingError("F512", "the files hold no tensor at all", str(folder), "fetch the checkpoint again")
    refuse_quantized({name: tensor.type.dtype.name for name, tensor in stored.tensors.items()}, folder)
    tensors: Mapping[str, Tensor] = stored.tensors
    adapters: tuple[AdapterCard, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    if lora:
        from frontends.adapters.merge import with_adapters

        tensors, adapters, notes = with_adapters(
            stored.tensors, lora, _tied(config, stored.tensors, str(folder)), folder
        )
    graph = build(config, tensors, str(folder), stored.spare)
    local = os.path.isdir(os.path.expanduser(model))
    card = replace(
        ModelCard.of(graph),
        title=folder.resolve().name if local else os.fspath(model),
        sources=dict(stored.files),
        config_digest=config.digest,
        folder=str(folder),
        adapters=adapters,
        sampling=generation.given,
    )
    graph.set_fact(card.name, replace(card, warnings=(*card.warnings, *stored.notes, *generation.warnings, *notes)))
    return graph


def _tied(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> tuple[str, str] | None:
    """Names of an embedding and of the output matrix that it is too, although no tensor is stored for that."""
    places = find_places(config, tensors, where)
    return (places.embed, f"{config.family.head}.weight") if places.head is None else None


def build(config: ModelConfig, tensors: Mapping[str, Tensor] | None, where: str, spare: Sequence[str] = ()) -> Graph:
    """The graph of a configuration and the tensors of a checkpoint; errors F550 to F554 as in `load`.

    Args:
        config: the configuration.
        tensors: by name; None for a graph whose weights have no numbers, of a model that is planned.
        where: the checkpoint, for messages.
        spare: biases that are no part of a model which has no use for them, when they are zero.
    """
    return assemble(config, tensors, where, spare)[0]


def assemble(
    config: ModelConfig, tensors: Mapping[str, Tensor] | None, where: str, spare: Sequence[str] = ()
) -> tuple[Graph, Stored]:
    """What `build` gives, and which tensors it asked for."""
    places = find_places(config, tensors, where)
    stored = Stored(tensors, where, config.model_type)
    graph = build_decoder(config, places, stored, "decoder")
    left_out = _left_out(config, places, stored)
    for name in (*places.copies, *left_out, *_extra_layers(config, places, stored), *_zero(spare, stored)):
        stored.skip(name)
    stored.finish(config.family.ignore, places.prefix, _hints(config, places, stored))
    card = _card(config, places, stored, left_out)
    graph.set_fact(card.name, card)
    return graph, stored


# ---- tensors of no layer ----


def _left_out(config: ModelConfig, places: Places, stored: Stored) -> list[str]:
    """The tensors of the other towers of a model that has several."""
    if not config.wrapper:
        return []
    return [name for name in stored.names if TOWER.search(name) and name not in stored.used]


def _extra_layers(config: ModelConfig, places: Places, stored: Stored) -> list[str]:
    """Tensors of layers beyond the last one, for families that may store such layers."""
    if not config.family.extra_layers:
        return []
    return [name for name in stored.names if _layer_index(config, places, name) >= len(config.layers)]


def _zero(names: Sequence[str], stored: Stored) -> list[str]:
    """Those of some vectors that nothing uses and that are zero."""
    tensors = stored.tensors or {}
    unused = [name for name in names if name in tensors and name not in stored.used]
    return [name for name in unused if not tensors[name].load().any()]


def _layer_index(config: ModelConfig, places: Places, name: str) -> int:
    below = name.removeprefix(places.prefix)
    found = re.match(rf"{re.escape(config.family.layers)}\.(\d{{1,9}})\.", below)
    return int(found[1]) if found else -1


def _hints(config: ModelConfig, places: Places, stored: Stored) -> dict[str, str]:
    """What to say of stored tensors of layers that the configuration does not count."""
    count = len(config.layers)
    said = f"config.json says that the model has {count} layers (num_hidden_layers)"
    names = [name for name in stored.names if name not in stored.used]
    return {name: said for name in names if _layer_index(config, places, name) >= count}


# ---- description ----


def _card(config: ModelConfig, places: Places, stored: Stored, left_out: Sequence[str]) -> ModelCard:
    first = next((layer.mixer for layer in config.layers if hasattr(layer.mixer, "heads")), None)
    heads = getattr(first, "heads", None)
    warnings = [*config.warnings, *_tower_note(config, left_out, stored.where)]
    inner = [getattr(layer.feed, "inner", None) for layer in config.layers]
    return ModelCard(
        family=config.model_type,
        model_type=config.wrapper or config.model_type,
        hidden_size=config.hidden_size,
        intermediate_size=next((size for size in inner if size), None),
        layers=len(config.layers),
        heads=heads,
        kv_heads=getattr(first, "kv_heads", heads),
        head_dim=getattr(first, "head_dim", None),
        vocab_size=config.vocab_size,
        max_position=config.max_position,
        context=config.context,
        parameters=sum(math.prod(shape) for shape in stored.used.values()),
        tied=places.head is None,
        windows=tuple(layer.window for layer in config.layers),
        rope=_rope_card(config),
        dtypes=stored.dtypes,
        warnings=tuple(warnings),
        unread=config.unread,
    )


def _rope_card(config: ModelConfig) -> RopeCard | None:
    from frontends.parts.rope import table

    rope = config.rope
    if rope is None:
        return None
    limits = [found.variant.limit for found in map(table, config.ropes.values()) if found.variant is not None]
    return RopeCard(
        kind=rope.kind,
        theta=rope.theta,
        width=rope.width,
        factor=rope.factor,
        attention_factor=table(rope).attention_factor,
        steady=min(limits, default=None),
        layers=tuple(layer.rope is not None for layer in config.layers),
    )


def _tower_note(config: ModelConfig, left_out: Sequence[str], where: str) -> list[Diagnostic]:
    """That only the language model of a model of several towers is compiled."""
    if not config.wrapper:
        return []
    towers = Counter(name.removeprefix("model.").partition(".")[0] for name in left_out)
    named = ", ".join(f"{tower} ({count})" for tower, count in sorted(towers.items()))
    rest = f"; {len(left_out)} tensors are left out: {named}" if left_out else ""
    message = f"{config.wrapper} has several parts, and this is its language model{rest}"
    return [Diagnostic("F542", message, where, "it takes text alone", "warning")]


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
    if tensor.recipe()[0] == "transposed":
        # Its rows are columns of what is stored, each of which takes a pass over the whole.
        tensor = tensor.inputs[0]
    count = (tensor.type.sizes or (1,))[0]
    few = (tensor.rows(at, at + 1) for at in sorted({0, count // 2, count - 1}))
    if any(row.any() for row in few):
        return False
    return not any(piece.any() for _, _, piece in tensor.pieces())
