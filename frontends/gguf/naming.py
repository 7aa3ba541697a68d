"""Which tensor of a checkpoint each tensor of a GGUF file is, and what was changed in it: words for rows of architectures.

A row names the tensors of a layer by stems, the part of ``blk.3.attn_q.weight`` between the layer and the ending. What a
stem stands for is a `To`; several stems that are one tensor of the checkpoint are a `Joined`. Whatever llama.cpp does to
a tensor when it writes the file is undone by a recipe, so that nothing is read before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from frontends.gguf.facts import Facts
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast, shifted
from ir.tensor.rearranged import reshaped, row_concat, row_gather, row_slice, transposed

Change = Callable[[Facts, Tensor], Tensor]
"""Undoes what was done to a tensor; it is given matrices as ``[out, in]`` and biases as vectors."""

EXPERT = "{e}"
"""Stands for the number of an expert in the name of a tensor."""


@dataclass(frozen=True)
class To:
    """Where a tensor goes.

    Attributes:
        name: module of the checkpoint, relative to the layer, or what tells it; with `EXPERT` in it the tensor holds all
            experts.
        change: what is undone.
        bare: the checkpoint's name has no ``.weight`` behind the module.
        only: ending of the tensors that were changed; empty for all.
    """

    name: str | Callable[[Facts], str]
    change: Change | None = None
    bare: bool = False
    only: str = ""


@dataclass(frozen=True)
class Joined:
    """One tensor of the checkpoint that the file has in parts.

    Attributes:
        stems: the parts, all of which must be there, with their endings.
        name: the whole name in the checkpoint, relative to the layer.
        make: puts it together.
    """

    stems: tuple[str, ...]
    name: str
    make: Callable[[Facts, tuple[Tensor, ...]], Tensor]


Names = Mapping[str, str | To]

TOP: Names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

DENSE: Names = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of most families."""

CONSUMED = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
"""Tensors that the configuration is made of, found at the top or in layers."""


# ---- what is undone ----


def from_neighbours(kv: bool = False) -> Change:
    """Rows of queries or keys in the order of a rope that turns halves, stored for one that turns neighbours."""

    def change(facts: Facts, tensor: Tensor) -> Tensor:
        count = facts.kv_heads if kv else facts.heads
        if tensor.row_count % (2 * count):
            return tensor
        # Element j of half i of a head is stored as half i of the pair j.
        order = np.arange(tensor.row_count).reshape(count, -1, 2).swapaxes(1, 2)
        return row_gather(tensor, order.reshape(-1))

    return change


def minus_one(facts: Facts, tensor: Tensor) -> Tensor:
    """Gains of norms that add one to them."""
    return shifted(cast(tensor, "f32"), -1.0)


def turned_over(facts: Facts, tensor: Tensor) -> Tensor:
    """Matrices that the checkpoint has as ``[in, out]``."""
    return transposed(tensor) if tensor.type.rank == 2 else tensor


def as_row(facts: Facts, tensor: Tensor) -> Tensor:
    """A matrix of one row, stored as a vector."""
    return reshaped(tensor, (1, tensor.type.size or 0)) if tensor.type.rank == 1 else tensor


def grouped(facts: Facts, tensor: Tensor) -> Tensor:
    """Rows of queries, keys and values by key/value head, stored as all queries, all keys, all values."""
    groups, share = facts.kv_heads, facts.heads // facts.kv_heads
    if tensor.row_count % (groups * (share + 2)):
        return tensor
    width = tensor.row_count // (groups * (share + 2))
    index = np.arange(tensor.row_count).reshape(-1, width)
    queries, keys, values = np.split(index, [groups * share, groups * (share + 1)])
    order = np.concatenate([queries.reshape(groups, share, width), keys[:, None], values[:, None]], axis=1)
    return row_gather(tensor, order.reshape(-1))


def experts_of(tensor: Tensor) -> list[Tensor]:
    """One tensor for each expert of a stacked one, ``[experts, ...]``."""
    count, *rest = tensor.shape
    if not rest:
        return [row_slice(tensor, index, index + 1) for index in range(count)]
    flat = reshaped(tensor, (count * rest[0], *rest[1:]))
    return [row_slice(flat, index * rest[0], (index + 1) * rest[0]) for index in range(count)]


def keys_and_values(facts: Facts, parts: tuple[Tensor, ...]) -> Tensor:
    """Rows of keys and values by head out of ``[heads, rank, keys]`` and ``[heads, values, rank]``."""
    pairs = zip(experts_of(parts[0]), experts_of(parts[1]), strict=True)
    return row_concat([piece for keys, values in pairs for piece in (transposed(keys), values)])


def gate_and_up(facts: Facts, parts: tuple[Tensor, ...]) -> Tensor:
    """``[experts, gate + up, in]`` out of the two, gates first."""
    pairs = list(zip(experts_of(parts[0]), experts_of(parts[1]), strict=True))
    whole = row_concat([piece for pair in pairs for piece in pair])
    return reshaped(whole, (len(pairs), whole.row_count // len(pairs), *whole.shape[1:]))


def gate_between_up(facts: Facts, parts: tuple[Tensor, ...]) -> Tensor:
    """``[experts, in, gate and up]`` with gates at even and ups at odd columns; of biases ``[experts, gate and up]``."""
    found = []
    for pair in zip(experts_of(parts[0]), experts_of(parts[1]), strict=True):
        both = row_concat(pair)
        mixed = row_gather(both, np.arange(both.row_count).reshape(2, -1).T.reshape(-1))
        found.append(transposed(mixed) if mixed.type.rank == 2 else reshaped(mixed, (1, both.row_count)))
    whole = row_concat(found)
    if found[0].type.rank == 2 and len(parts[0].shape) == 2:
        return whole
    return reshaped(whole, (len(found), whole.row_count // len(found), *whole.shape[1:]))


def stacked_turned(facts: Facts, parts: tuple[Tensor, ...]) -> Tensor:
    """``[experts, in, out]`` out of ``[experts, out, in]``."""
    found = [transposed(item) for item in experts_of(parts[0])]
    whole = row_concat(found)
    return reshaped(whole, (len(found), whole.row_count // len(found), *whole.shape[1:]))


# ---- all tensors of a file ----


def renamed(facts: Facts, top: Names, layer: Names, base: str, joined: tuple[Joined, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a file under the names of the checkpoint; those that the row does not know keep theirs.

    Args:
        facts: the file.
        top, layer: names by stem, outside and inside of layers.
        base: what stands before the number of a layer.
        joined: what is put together.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in facts.tensors.items():
        prefix, stem, ending = _split(name)
        if any(name == item or name.endswith("." + item) for item in CONSUMED):
            continue
        if prefix and int(_number(prefix)) >= facts.layers:
            # They predict tokens behind the next one.
            continue
        part = next((item for item in joined if prefix and f"{stem}{ending}" in item.stems), None)
        if part is not None and all(f"{prefix}{item}" in facts.tensors for item in part.stems):
            if f"{stem}{ending}" == part.stems[0]:
                pieces = tuple(facts.tensors[f"{prefix}{item}"] for item in part.stems)
                found[f"{base}.{_number(prefix)}.{part.name}"] = part.make(facts, pieces)
            continue
        target = (layer if prefix else top).get(stem)
        if target is None:
            found[name] = tensor
            continue
        place = target if isinstance(target, To) else To(target)
        outer = f"{base}.{_number(prefix)}." if prefix else ""
        module = place.name if isinstance(place.name, str) else place.name(facts)
        full = f"{outer}{module}{'' if place.bare else ending}"
        if EXPERT in module:
            for index, piece in enumerate(experts_of(tensor)):
                found[full.replace(EXPERT, str(index))] = _changed(facts, place, piece, ending)
        else:
            found[full] = _changed(facts, place, tensor, ending)
    return found


def _changed(facts: Facts, place: To, tensor: Tensor, ending: str) -> Tensor:
    if place.change is None or (place.only and place.only != ending):
        return tensor
    return place.change(facts, tensor)


def _split(name: str) -> tuple[str, str, str]:
    """``blk.3.``, ``attn_q`` and ``.weight`` of a name; nothing first for tensors outside of layers."""
    prefix = ""
    parts = name.split(".", 2)
    if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal():
        prefix, name = f"blk.{parts[1]}.", parts[2]
    for ending in (".weight", ".bias"):
        if name.endswith(ending):
            return prefix, name.removesuffix(ending), ending
    return prefix, name, ""


def _number(prefix: str) -> str:
    return prefix.split(".")[1]


__all__ = [
    "DENSE",
    "TOP",
    "Joined",
    "Names",
    "To",
    "as_row",
    "from_neighbours",
    "gate_and_up",
    "gate_between_up",
    "grouped",
    "keys_and_values",
    "minus_one",
    "renamed",
    "stacked_turned",
    "turned_over",
]
