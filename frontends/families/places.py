"""Where the parts of a decoder are in one checkpoint: what stands before its names, the embedding, the head."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from frontends.families.model_config import ModelConfig
from ir.base.diag import LadingError
from ir.tensor.base import Tensor

TOWER = re.compile(
    r"(^|\.)(visual|vit|vision\w*|audio\w*|image\w*|multi_modal_projector|mm_projector|mlp1|embed_vision|embed_audio)\."
    r"|(^|\.)image_newline$"
)
"""Parts of multimodal checkpoints that the language model does without; some have embeddings of their own."""


@dataclass(frozen=True)
class Places:
    """The places of one checkpoint.

    Attributes:
        prefix: what stands before the decoder's names.
        embed: key of the embedding matrix; the output matrix when only that one is stored and both are tied.
        head: key of the output matrix; None when it is the embedding.
        only_head: the embedding is the stored output matrix.
        copies: stored keys that repeat another one.
    """

    prefix: str
    embed: str
    head: str | None
    only_head: bool = False
    copies: tuple[str, ...] = ()


def find_places(config: ModelConfig, tensors: Mapping[str, Tensor] | None, where: str) -> Places:
    """The places of a checkpoint; without tensors (a model that is planned) those that names have as a rule.

    Raises:
        LadingError: F554 when the names cannot be made out.
    """
    row = config.family
    if tensors is None:
        return Places("model.", f"model.{row.embed}.weight", None if config.tied else f"{row.head}.weight")
    prefix = _prefix(config, tensors.keys(), where)
    embed, head = f"{prefix}{row.embed}.weight", _head(config, tensors.keys(), where)
    if not config.tied:
        return Places(prefix, embed, head)
    if head not in tensors:
        return Places(prefix, embed, None)
    if embed not in tensors:
        return Places(prefix, head, None, only_head=True)
    if _equal(tensors[embed], tensors[head]):
        return Places(prefix, embed, None, copies=(head,))
    return Places(prefix, embed, head)  # two matrices in spite of the configuration, as in the reference implementation


def _ending(config: ModelConfig, stored: Collection[str], suffix: str) -> list[str]:
    """Stored names that end so and whose beginning lies neither in another tower nor in a layer."""
    layers = re.compile(rf"(^|\.){re.escape(config.family.layers)}\.\d+\.")
    found = [name for name in stored if name == suffix or name.endswith("." + suffix)]
    return [name for name in found if not TOWER.search(name) and not layers.search(name.removesuffix(suffix))]


def _prefix(config: ModelConfig, stored: Collection[str], where: str) -> str:
    """What stands before the embedding's name, or before the first layer's when no embedding is stored."""
    row = config.family
    first = row.attn_in or row.attn_out
    norms = (first,) if isinstance(first, str) else first
    suffixes = [f"{row.embed}.weight", *(f"{row.layers}.0.{name}.weight" for name in norms)]
    for suffix in suffixes:
        found = _ending(config, stored, suffix)
        if len(found) > 1:
            some = ", ".join(sorted(found)[:4])
            raise LadingError("F554", f"several tensors could belong to the decoder: {some}", where)
        if found:
            return found[0][: -len(suffix)]
    some = ", ".join(sorted(stored)[:3]) or "none"
    message = f"no tensor is named like {row.embed}.weight of the {config.model_type} family"
    raise LadingError("F554", message, where, f"the first tensors stored are: {some}")


def _head(config: ModelConfig, stored: Collection[str], where: str) -> str:
    suffix = f"{config.family.head}.weight"
    found = _ending(config, stored, suffix)
    if len(found) > 1:
        raise LadingError("F554", f"several tensors could be the output matrix: {', '.join(sorted(found)[:4])}", where)
    return found[0] if found else suffix


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.type != b.type:
        return False
    return all(
        np.array_equal(piece.view(np.uint8), b.rows(start, stop).view(np.uint8)) for start, stop, piece in a.pieces()
    )


__all__ = ["TOWER", "Places", "find_places"]
