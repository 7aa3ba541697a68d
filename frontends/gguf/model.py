"""A GGUF file as what a checkpoint folder holds: ``config.json``, tensors by name, settings for generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontends.configuration.keys import shown
from frontends.containers.gguf import Gguf
from frontends.gguf.architectures import ROWS, Architecture
from frontends.gguf.facts import Facts, layers_of
from frontends.gguf.naming import renamed
from ir.base.diag import LadingError, suggest
from ir.tensor.base import Tensor

ARCHITECTURES: Mapping[str, Architecture] = {row.name: row for row in ROWS}
"""The rows by ``general.architecture``."""

OTHER_TYPES = {
    "adapter": "an adapter (LoRA), not a model by itself",
    "mmproj": "the vision or audio part of a model; give the file of its language model",
    "imatrix": "statistics for quantization, not a model",
    "vocab": "a vocabulary without a model",
}
"""``general.type`` of files that are no language models."""

ENDS = ("eos", "eot", "eom")
"""Tokens that end an answer."""

SAMPLING = {
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "temp": "temperature",
    "penalty_repeat": "repetition_penalty",
}
"""Settings of ``general.sampling`` and what ``generation_config.json`` calls them."""


@dataclass(frozen=True)
class Rebuilt:
    """What a checkpoint folder of the model would hold.

    Attributes:
        config: ``config.json``.
        generation: ``generation_config.json``.
        tensors: tensors under the names of the checkpoint.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: Mapping[str, Tensor]


def rebuilt(gguf: Gguf, where: str) -> Rebuilt:
    """The model of a file.

    Raises:
        LadingError: F585 an architecture without a row, a file that is no language model, or keys that change the
            computation and are not read; F586 a value that is missing or not what it must be.
    """
    facts = Facts(gguf.metadata, gguf.tensors, where)
    row = _row(facts)
    config = _config(facts, row)
    left = facts.unread()
    if left:
        some = ", ".join(left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
        message = f"the metadata has keys that may change the computation and are not read: {some}"
        raise LadingError("F585", message, where, "start from the model's safetensors checkpoint")
    _check_layers(facts)
    tensors = renamed(facts, row.top, row.layer, row.base, row.joined)
    return Rebuilt(config, _generation(facts), tensors)


def _row(facts: Facts) -> Architecture:
    kind = facts.metadata.get("general.type", "model")
    if kind in OTHER_TYPES:
        raise LadingError("F585", f"this file is {OTHER_TYPES[kind]}", facts.where)
    name = facts.architecture
    if not isinstance(name, str):
        raise LadingError("F586", "the metadata lacks general.architecture, the name of one", facts.where)
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = suggest(name[:60], list(ARCHITECTURES))
    hint = f"{near} known: {', '.join(sorted(ARCHITECTURES))}".strip()
    raise LadingError("F585", f"GGUF files of the architecture {shown(name)} are not read", facts.where, hint)


def _config(facts: Facts, row: Architecture) -> dict[str, Any]:
    """The configuration; keys without a value are null, which readers tell from missing ones."""
    model_type = row.model_type if isinstance(row.model_type, str) else row.model_type(facts)
    config: dict[str, Any] = {"model_type": model_type}
    for key, spec in row.config.items():
        value = spec(facts)
        if value is not None or key in ("sliding_window", "rope_scaling"):
            config[key] = value
    for key in ("bos", "eos", "padding"):
        number = facts.metadata.get(f"tokenizer.ggml.{key}_token_id")
        config[f"{key.removesuffix('ding')}_token_id"] = number if type(number) is int else None
    return config


def _check_layers(facts: Facts) -> None:
    stored = layers_of(facts.tensors)
    if stored and max(stored) >= facts.blocks:
        message = f"the file has a layer {max(stored)}, and its metadata says that there are {facts.blocks}"
        raise LadingError("F586", message, facts.where)


def _generation(facts: Facts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ends = [facts.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ENDS]
    known = list(dict.fromkeys(number for number in ends if type(number) is int))
    if known:
        found["eos_token_id"] = known
    settings = {
        name: facts.metadata[f"general.sampling.{key}"]
        for key, name in SAMPLING.items()
        if f"general.sampling.{key}" in facts.metadata
    }
    if settings:
        found.update(do_sample=True, **settings)
    return found


__all__ = ["ARCHITECTURES", "Rebuilt", "rebuilt"]
