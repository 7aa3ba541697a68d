"""The table of encodings, and how a checkpoint's stored tensors become those of the plain checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frontends.containers.encodings import awq, bitsandbytes, fp8, gptq, integers, mxfp4, nvfp4
from frontends.containers.encodings.stored import BESIDE, CACHE, Declared, Encoding, Found, Stored
from ir.base.diag import Diagnostic, LadingError
from ir.tensor.base import Tensor

ENCODINGS: tuple[Encoding, ...] = (
    gptq.GPTQ,
    awq.AWQ,
    nvfp4.NVFP4,
    integers.PACKED,
    mxfp4.MXFP4,
    bitsandbytes.FOUR_BITS,
    bitsandbytes.EIGHT_BITS,
    integers.BYTES,
    fp8.FP8,
)
"""In the order in which tensors are offered to them."""

KEYS = ("quantization_config", "compression_config")
"""Keys of a configuration under which quantization is described."""
NESTED = ("text_config", "language_config", "llm_config")
"""Keys of the parts of a configuration that may hold such keys."""
FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files of older tools that describe it."""
MAX_BYTES = 16 << 20
RUN_TIME = ("transform_config", "rotation", "online_rotation")
"""Entries that ask for computations beside the weights."""


@dataclass(frozen=True)
class Decoded:
    """The tensors of a plain checkpoint.

    Attributes:
        tensors: by the names of the plain checkpoint, in the order in which they are stored.
        notes: what to tell.
        encodings: for people, how each decoded tensor is stored.
        spare: biases of decoded matrices, which some tools add to layers that have none; those are zero.
    """

    tensors: Mapping[str, Tensor]
    notes: tuple[Diagnostic, ...] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)
    spare: tuple[str, ...] = ()


def declared_in(folder: Path) -> Declared:
    """What the configuration of a checkpoint says of its quantization; empty for whatever cannot be read."""
    raw = _object(folder / "config.json")
    for holder, prefix in ((raw, ""), *((raw.get(name), f"{name}.") for name in NESTED)):
        for key in KEYS:
            record = holder.get(key) if isinstance(holder, dict) else None
            if isinstance(record, dict) and record:
                return Declared(record, f"{folder / 'config.json'}:{prefix}{key}")
    for name in FILES:
        record = _object(folder / name)
        inner = record.get("quantization")
        if record:
            return Declared(inner if isinstance(inner, dict) else record, str(folder / name))
    return Declared()


def _object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def decode(tensors: Mapping[str, Tensor], declared: Declared, where: str) -> Decoded:
    """The tensors of a plain checkpoint, quantized ones decoded when they are read; only headers are looked at.

    Raises:
        LadingError: F535 an encoding that is not known, F577 the configuration contradicts the tensors, F578 tensors of a
            weight that do not fit each other, F581 the checkpoint asks for computations beside the weights.
    """
    stored = Stored(tensors, declared, where)
    found: dict[str, Found] = {}
    by: dict[str, Encoding] = {}
    taken: set[str] = set()
    for encoding in ENCODINGS:
        for item in encoding.find(stored):
            if item.name in found or taken.intersection(item.made_of[:1]):
                continue
            if item.name in tensors and item.name not in item.made_of:
                message = f"{item.name} is stored both plain and as {item.words} ({item.made_of[0]})"
                raise LadingError("F578", message, where, "remove one of them")
            found[item.name], by[item.name] = item, encoding
            taken.update(item.made_of)
    _agree(stored, found, by)
    if not found:
        return Decoded(tensors, tuple(_leftover(declared)))
    modules = [name.removesuffix(".weight") for name in found]
    taken.update(stored.there(*(f"{module}.{item}" for module in modules for item in BESIDE)))
    taken.update(name for name in tensors if name.rpartition(".")[2] in CACHE)
    words = {name: item.words for name, item in found.items()}
    spare = stored.there(*(f"{module}.bias" for module in modules))
    return Decoded(_renamed(tensors, found, taken), tuple(_notes(stored, found)), words, spare)


def _renamed(tensors: Mapping[str, Tensor], found: Mapping[str, Found], taken: set[str]) -> dict[str, Tensor]:
    """The stored tensors with each quantized weight in the place of the first one it is made of."""
    first = {item.made_of[0]: item for item in found.values()}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in first:
            out[first[name].name] = first[name].tensor
        elif name not in taken:
            out[name] = tensor
    return out


def _agree(stored: Stored, found: Mapping[str, Found], by: Mapping[str, Encoding]) -> None:
    """Compare the method that the configuration names with what the tensors are."""
    method = stored.declared.method
    known = {name for encoding in ENCODINGS for name in encoding.methods}
    if not found or not method:
        return
    name = next((name for name in found if not _is(method, by[name])), None)
    if name is None:
        for key in RUN_TIME:
            if stored.declared.record.get(key):
                message = f"the checkpoint is made for activations that are turned as well ({key})"
                hint = "start from the original bf16, fp16 or fp32 checkpoint"
                raise LadingError("F581", message, stored.declared.where, hint)
        return
    if method not in known:
        hint = "start from the original bf16, fp16 or fp32 checkpoint"
        raise LadingError("F535", f"the checkpoint is quantized ({method[:60]!r})", stored.declared.where, hint)
    raise stored.contradicts(f"quant_method {method!r}", f"{name} is stored as {found[name].words}")


def _is(method: str, encoding: Encoding) -> bool:
    return method in encoding.methods


def _notes(stored: Stored, found: Mapping[str, Found]) -> list[Diagnostic]:
    if stored.declared.record:
        return []
    kinds = sorted({item.words for item in found.values()})
    message = f"{len(found)} weights are quantized ({'; '.join(kinds[:3])}), although no configuration says so"
    return [Diagnostic("F580", message, stored.where, severity="note")]


def _leftover(declared: Declared) -> list[Diagnostic]:
    if not declared.record:
        return []
    method = declared.method or "method not stated"
    message = f"the configuration describes a quantization ({method[:60]}), but every weight is stored in plain numbers"
    return [Diagnostic("F579", message, declared.where, "remove the entry", "note")]


__all__ = ["ENCODINGS", "Decoded", "declared_in", "decode"]
