"""What measurement chooses from: the storages of each weight, and the weights that are decided about together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ir.base.diag import LadingError
from ir.quant.storage import Storage
from ir.quant.storage_size import stored_bits
from ir.target.device import Device
from ir.target.target import Target
from ir.tensor.bf16_parts import parts_needed
from passes.precision.plan_file import WIDTHS
from passes.precision.planned_weights import Weight, place_of, same_matrix
from passes.precision.storage_rules import Preferences

TIES: dict[str, tuple[str, ...]] = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate-up": ("gate_proj", "up_proj")}
"""Kinds of layers that fused forms of the runtime store as one matrix."""


@dataclass(frozen=True)
class Choice:
    """One way to store the weights of an item.

    Attributes:
        storages: in the order of the item's weights.
        tied: the embedding rows are read from the logits matrix.
        bytes: size in the weight file, or in the file of exact embedding rows.
        bits: what counts as stored bits of the weights.
        streamed: bytes that the device reads for each token.
    """

    storages: tuple[Storage, ...]
    tied: bool
    bytes: int
    bits: int
    streamed: int


@dataclass(frozen=True)
class Item:
    """Weights that are decided about together, and the ways to store them."""

    weights: tuple[Weight, ...]
    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """Names of the weights."""
        return " + ".join(weight.name for weight in self.weights)


def candidates(weight: Weight, wanted: Preferences, *, tied: bool = False) -> list[Storage]:
    """Storages of one weight that the options and rules allow, each once; `tied` speaks of rows in the logits matrix.

    Raises:
        LadingError: Q454 nothing is allowed.
    """
    rule = wanted.rule_of(weight)
    fixed = dict(rule.storage) if rule is not None else {}
    forms = [fixed["symmetric"]] if "symmetric" in fixed else _forms(wanted)
    blocks = [fixed["block"]] if "block" in fixed else list(wanted.blocks)
    found: dict[Storage, None] = {}
    for bits in _widths(weight, wanted, tied=tied):
        for block in blocks:
            for symmetric in forms:
                base = wanted.storage(bits=bits, block=block, symmetric=symmetric)
                base = replace(base, **{**fixed, "bits": bits})
                if weight.role == "embedding" and not tied:
                    base = wanted.own_rows(base)
                made = wanted.settled(weight, base)
                if made.block == weight.columns:
                    made = replace(made, block=0)
                found[made] = None
    if not found:
        raise LadingError(
            "Q454",
            "the options and rules leave no way to store a weight",
            where=weight.name,
            hint="look at widths, blocks, forms, floor and the bounds of rules",
        )
    return list(found)


def _forms(wanted: Preferences) -> list[bool]:
    if wanted.symmetric:
        return [True]
    return [form == "symmetric" for form in wanted.forms]


def _widths(weight: Weight, wanted: Preferences, *, tied: bool) -> list[int]:
    rule = wanted.rule_of(weight)
    floor = wanted.floor(weight)
    if rule is not None and "bits" in rule.storage:
        found = [max(rule.storage["bits"], floor)]
    elif weight.role == "embedding" and wanted.embedding_bits:
        found = [max(wanted.embedding_bits, floor)]
    else:
        legal = [bits for bits in wanted.widths if rule is None or rule.allows(bits)]
        found = [bits for bits in legal if bits >= floor]
        if not found and legal:
            found = [next(bits for bits in WIDTHS if bits >= floor)]
    if weight.role == "embedding":
        found = [bits for bits in found if wanted.target.reads_rows(bits, weight.rows)]
        if not found and not tied and rule is None:
            found = [8]
    return sorted(set(found))


def make_items(weights: Sequence[Weight], wanted: Preferences) -> list[Item]:
    """Every weight in exactly one item, in program order of the first weight of each.

    Raises:
        LadingError: Q454 nothing is allowed for a weight.
    """
    pair = same_matrix(weights)
    groups = _tied_layers(weights, wanted.tie)
    items: list[Item] = []
    seen: set[Weight] = set()
    for weight in weights:
        if weight in seen:
            continue
        if pair is not None and weight in pair:
            item = _vocabulary(*pair, wanted)
        else:
            members = groups.get(weight, (weight,))
            item = Item(members, _alike(members, wanted))
        seen.update(item.weights)
        items.append(item)
    return items


def _tied_layers(weights: Sequence[Weight], ties: Sequence[str]) -> Mapping[Weight, tuple[Weight, ...]]:
    """Members of the group of each weight that is in one: same layer, same input, kinds of one tie."""
    groups: dict[tuple, list[Weight]] = {}
    for weight in weights:
        layer, kind = place_of(weight.name)
        for tie in ties:
            if kind in TIES[tie] and weight.role == "layer":
                source = weight.value.users[0].inputs[0]
                groups.setdefault((tie, layer, source), []).append(weight)
    return {weight: tuple(members) for members in groups.values() for weight in members}


def _alike(members: tuple[Weight, ...], wanted: Preferences) -> tuple[Choice, ...]:
    """Choices in which all members have the same storage."""
    first, *others = [candidates(weight, wanted) for weight in members]
    common = [storage for storage in first if all(storage in other for other in others)]
    if not common:
        raise LadingError(
            "Q454",
            "the rules leave no storage that tied weights could share",
            where=" and ".join(weight.name for weight in members),
            hint="give the same rule to all of them, or leave out the tie",
        )
    return tuple(_choice(members, (storage,) * len(members), wanted, tied=False) for storage in common)


def _vocabulary(table: Weight, head: Weight, wanted: Preferences) -> Item:
    """Embedding and logits matrix of a checkpoint that ties them: stored once, or each in its own way."""
    heads = candidates(head, wanted)
    shared = candidates_or_none(table, wanted, tied=True)
    found = [
        _choice((table, head), (storage, storage), wanted, tied=True)
        for storage in heads
        if storage in shared and wanted.can_tie(storage, storage)
    ]
    for rows in candidates(table, wanted):
        found += [
            _choice((table, head), (rows, storage), wanted, tied=False)
            for storage in heads
            if not wanted.can_tie(rows, storage)
        ]
    return Item((table, head), tuple(found))


def candidates_or_none(weight: Weight, wanted: Preferences, *, tied: bool = False) -> list[Storage]:
    """As `candidates`, but an empty list where nothing is allowed."""
    if not _widths(weight, wanted, tied=tied):
        return []
    return candidates(weight, wanted, tied=tied)


def _choice(weights: Sequence[Weight], storages: tuple[Storage, ...], wanted: Preferences, *, tied: bool) -> Choice:
    target, device = wanted.target, wanted.device
    parts = list(zip(weights, storages, strict=True))
    # Half floats are written for the embedding and for the logits matrix, only integer codes are shared.
    stored = [(weight, s) for weight, s in parts if not (tied and weight.role == "embedding")]
    size = sum(size_of_storage(*part, target) for part in stored)
    streamed = sum(streamed_bytes(*part, device) for part in parts)
    return Choice(storages, tied, size, sum(_bits(*part, target) for part in stored), streamed)


def _copies(weight: Weight) -> int:
    """How often a matrix is written: once for each product with it."""
    return 1 if weight.role == "embedding" else max(1, len(weight.value.users))


def size_of_storage(weight: Weight, storage: Storage, target: Target) -> int:
    """Bytes of one weight as it is written, without its bias."""
    if weight.role == "embedding" and storage.bits == 32:
        parts = parts_needed(weight.value.tensor)
        return target.exact_rows_bytes(weight.rows, weight.columns, parts)
    return target.weight_bytes(weight.rows, weight.columns, storage) * _copies(weight)


def streamed_bytes(weight: Weight, storage: Storage, device: Device) -> int:
    """Bytes that a device reads of a weight for each token: of experts as often as tokens reach them, of embedding rows
    next to nothing."""
    if weight.role == "embedding":
        return 0
    share = weight.seat.share if weight.seat is not None else 1.0
    return round(device.streamed(weight.rows, weight.columns, storage) * _copies(weight) * share)


def fastest_bytes(weights: Sequence[Weight], widths: Sequence[int], device: Device) -> int:
    """Bytes that a device reads for each token with all weights at the one width that it reads fastest, one scale a row."""
    return min(
        sum(streamed_bytes(weight, Storage(bits=bits), device) for weight in weights) for bits in widths if bits <= 8
    )


def _bits(weight: Weight, storage: Storage, target: Target) -> int:
    if weight.role == "embedding" and storage.bits == 32:
        return 8 * size_of_storage(weight, storage, target)
    return stored_bits(weight.rows, weight.columns, storage) * _copies(weight)


def planned_elements(weights: Sequence[Weight]) -> int:
    """Numbers that bits per weight are counted for: those of the checkpoint, so a tied matrix counts once."""
    pair = same_matrix(weights)
    return sum(weight.elements for weight in weights) - (pair[0].elements if pair is not None else 0)


__all__ = [
    "TIES",
    "Choice",
    "Item",
    "candidates",
    "fastest_bytes",
    "make_items",
    "planned_elements",
    "size_of_storage",
    "streamed_bytes",
]
