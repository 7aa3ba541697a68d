"""Which tensors of a checkpoint a model is made of: names, shapes, and where the parts of fused ones lie.

The layout is computed from the configuration, the family's names and the names found in the files, before any tensor
is opened; comparing it with the files finds everything that is missing, left over or misshapen at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

from frontends.checkpoint.config_file import ModelConfig
from ir.base.diag import LadingError

_TOWER = re.compile(r"(^|\.)(visual|vit|vision\w*|audio\w*|image\w*)\.")
"""Parts of multimodal checkpoints that have embeddings of their own."""


@dataclass(frozen=True)
class Linear:
    """A linear module.

    Attributes:
        module: name of the module, prefix included; for a part of a fused module the name it would have by itself.
        weight: key of the stored matrix.
        bias: key of the stored bias, or None.
        inputs, outputs: columns and rows that belong to this module.
        rows: first row of this module in the stored tensors.
        stored_rows: rows of the stored tensors; more than `outputs` when modules are fused.
    """

    module: str
    weight: str
    bias: str | None
    inputs: int
    outputs: int
    rows: int
    stored_rows: int


@dataclass(frozen=True)
class LayerLayout:
    """Tensors of one layer: linear modules by role, module names of the norms it has by slot of `Names`."""

    base: str
    linears: dict[str, Linear]
    norms: dict[str, str]


@dataclass(frozen=True)
class Layout:
    """Tensors of the model.

    Attributes:
        prefix: what stands before the decoder's names in this checkpoint.
        embed: key of the embedding matrix; the output matrix when only that one is stored and both are tied.
        head: key of the output matrix; None when it is the embedding.
        norm: module name of the final norm.
        layers: the layers in order.
        shapes: expected shape of every key.
        needless: stored keys that repeat another one.
    """

    prefix: str
    embed: str
    head: str | None
    norm: str
    layers: tuple[LayerLayout, ...]
    shapes: dict[str, tuple[int, ...]]
    needless: tuple[str, ...] = ()

    def tied_to_embedding(self) -> Layout:
        """The same layout with the embedding as output matrix, although another copy is stored."""
        shapes = {key: shape for key, shape in self.shapes.items() if key != self.head}
        return replace(self, head=None, shapes=shapes, needless=(*self.needless, self.head or ""))


def make_layout(config: ModelConfig, stored: Collection[str], where: str) -> Layout:
    """The layout of a checkpoint that stores the names `stored`; F554 when its naming cannot be made out."""
    names = config.family.names
    prefix = _find_prefix(config, stored, where)
    embed = f"{prefix}{names.embed}.weight"
    head: str | None = _find_head(config, stored, where)
    if config.tied and head is not None and embed not in stored and head in stored:
        embed, head = head, None
    elif config.tied and head not in stored:
        head = None
    norm = f"{prefix}{names.norm}"
    shapes: dict[str, tuple[int, ...]] = {embed: (config.vocab_size, config.hidden_size)}
    layers = tuple(_layer(config, f"{prefix}{names.layers}.{index}", stored) for index in range(len(config.layers)))
    for layer in layers:
        shapes.update(_layer_shapes(config, layer))
    shapes[f"{norm}.weight"] = (config.hidden_size,)
    if head is not None:
        shapes[head] = (config.vocab_size, config.hidden_size)
    return Layout(prefix, embed, head, norm, layers, shapes)


def _ending(stored: Collection[str], suffix: str) -> list[str]:
    return [name for name in stored if (name == suffix or name.endswith("." + suffix)) and not _TOWER.search(name)]


def _find_prefix(config: ModelConfig, stored: Collection[str], where: str) -> str:
    """What stands before the embedding's name, or before the first layer's when no embedding is stored."""
    names = config.family.names
    for suffix in (f"{names.embed}.weight", f"{names.layers}.0.{names.down}.weight"):
        found = _ending(stored, suffix)
        if len(found) > 1:
            some = ", ".join(sorted(found)[:4])
            raise LadingError("F554", f"several tensors could belong to the decoder: {some}", where)
        if found:
            return found[0][: -len(suffix)]
    some = ", ".join(sorted(stored)[:3]) or "none"
    message = f"no tensor is named like {names.embed}.weight of the {config.family.model_type} family"
    raise LadingError("F554", message, where, f"the first tensors stored are: {some}")


def _find_head(config: ModelConfig, stored: Collection[str], where: str) -> str:
    suffix = f"{config.family.names.head}.weight"
    found = _ending(stored, suffix)
    if len(found) > 1:
        raise LadingError("F554", f"several tensors could be the output matrix: {', '.join(sorted(found)[:4])}", where)
    return found[0] if found else suffix


def _layer(config: ModelConfig, base: str, stored: Collection[str]) -> LayerLayout:
    names = config.family.names
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    sizes = {
        "q": (hidden, query),
        "k": (hidden, key),
        "v": (hidden, key),
        "o": (query, hidden),
        "gate": (hidden, inner),
        "up": (hidden, inner),
        "down": (inner, hidden),
    }
    linears = {}
    for fused, roles in ((names.qkv, "q k v"), (names.gate_up, "gate up"), ("", "o down")):
        row, total = 0, sum(sizes[role][1] for role in roles.split())
        for role in roles.split():
            module = f"{base}.{getattr(names, role)}"
            source = f"{base}.{fused}" if fused else module
            inputs, outputs = sizes[role]
            has_bias = config.bias[role]
            if has_bias is None:
                has_bias = f"{source}.bias" in stored
            bias = f"{source}.bias" if has_bias else None
            place = (row, total) if fused else (0, outputs)
            linears[role] = Linear(module, f"{source}.weight", bias, inputs, outputs, *place)
            row += outputs
    slots = ["attn_in", "attn_out", "mlp_in", "mlp_out"] + (["q_norm", "k_norm"] if config.family.qk_norm else [])
    norms = {slot: f"{base}.{getattr(names, slot)}" for slot in slots if getattr(names, slot)}
    return LayerLayout(base, linears, norms)


def _layer_shapes(config: ModelConfig, layer: LayerLayout) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for linear in layer.linears.values():
        shapes[linear.weight] = (linear.stored_rows, linear.inputs)
        if linear.bias is not None:
            shapes[linear.bias] = (linear.stored_rows,)
    full = config.family.qk_norm == "full"
    widths = {
        "q_norm": config.head_dim * (config.heads if full else 1),
        "k_norm": config.head_dim * (config.kv_heads if full else 1),
    }
    for slot, module in layer.norms.items():
        shapes[f"{module}.weight"] = (widths.get(slot, config.hidden_size),)
    return shapes
