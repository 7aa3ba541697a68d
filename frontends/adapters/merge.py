"""Adapters become part of the weights of their base: each changed tensor a recipe, read in ranges like any other.

``W + weight * factor * B A`` in single precision, whatever the base is stored as; a base of another format has been
decoded before. What an adapter holds whole takes the place of what the base has. What is computed is what the adapter
computes beside its base: where embedding and output matrix are one and it changes one of them, they are two afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frontends.adapters.adapter import Adapter, Change, open_adapter
from ir.base.diag import Diagnostic, LadingError, suggest
from ir.base.types import F32
from ir.facts.model_card import AdapterCard
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.inline import InlineTensor
from ir.tensor.low_rank import low_rank, row_lengths
from ir.tensor.rearranged import reshaped, row_concat, row_gather, transposed

MAX_REPORTS = 8

WHOLE = {
    "weight": "it is stored whole",
    "bias": "its bias is stored whole",
    "token_rows": "its rows are stored whole",
    "lengths": "its rows get lengths of their own (use_dora)",
}
"""Parts that are not added to something, so that a share of them says nothing, and why."""

_TOWER = re.compile(r"(^|\.)(visual|vit|vision\w*|audio\w*|image\w*|mtp)\.")

_LAYER = re.compile(r"\w+\.\d+\.")


@dataclass(frozen=True)
class Tied:
    """A checkpoint whose output matrix is its embedding: names of both tensors, of which the first is stored."""

    embedding: str
    head: str


@dataclass(frozen=True)
class Merged:
    """The tensors of a model with its adapters, how many each of them changed, and what is to be said of it."""

    tensors: Mapping[str, Tensor]
    changed: tuple[int, ...]
    notes: tuple[Diagnostic, ...] = ()


def merge(tensors: Mapping[str, Tensor], adapters: Sequence[Adapter], tied: Tied | None, where: str) -> Merged:
    """The tensors of a checkpoint, those that adapters change as recipes over both.

    Args:
        tensors: by name, of the plain checkpoint.
        adapters: merged one after the other.
        tied: names of the output matrix that is the embedding, if it is.
        where: the checkpoint, for messages.

    Raises:
        LadingError: F591 a weight that means nothing, F592 a change that fits no tensor.
    """
    found, notes, counts = dict(tensors), [], []
    for adapter in adapters:
        split = tied is not None and tied.head in found
        state = _Merging(adapter, found, tied)
        problems = [text for change in state.changes() if (text := state.apply(change))]
        if problems:
            raise _misfits(adapter, problems, where)
        counts.append(len(state.changed))
        if tied is not None and tied.head in found and not split:
            text = (
                "the adapter does not change embedding and output matrix alike, which are one matrix in its base; they "
                "are two now and take more room"
            )
            notes.append(Diagnostic("F595", text, adapter.name, severity="note"))
    return Merged(found, tuple(counts), tuple(notes))


def with_adapters(
    tensors: Mapping[str, Tensor], given: Sequence[tuple[str, float]], tied: tuple[str, str] | None, folder: Path
) -> tuple[Mapping[str, Tensor], tuple[AdapterCard, ...], tuple[Diagnostic, ...]]:
    """The tensors of a checkpoint with adapters merged, what is known of these, and what users should know.

    Args:
        tensors: by name, of the plain checkpoint.
        given: folder or hub name of each adapter, and its weight.
        tied: names of the embedding, and of the output matrix where that is the embedding.
        folder: the checkpoint.

    Raises:
        LadingError: as for `frontends.adapters.adapter.open_adapter` and `merge`.
    """
    adapters = [open_adapter(name, weight) for name, weight in given]
    found = merge(tensors, adapters, None if tied is None else Tied(*tied), str(folder))
    cards = tuple(
        AdapterCard(
            name=item.name,
            folder=str(item.folder),
            weight=item.weight,
            base=item.config.base,
            rank=item.config.rank,
            tensors=count,
            digests=item.digests,
        )
        for item, count in zip(adapters, found.changed, strict=True)
    )
    return found.tensors, cards, (*found.notes, *(note for item in adapters for note in _of_another(item, folder)))


def _of_another(adapter: Adapter, folder: Path) -> list[Diagnostic]:
    """A warning where an adapter names another base than the checkpoint that it is merged into."""
    base = adapter.config.base
    if base is None:
        return []
    wanted = {os.path.basename(base.rstrip("/\\")).lower(), "models--" + base.replace("/", "--").lower()}
    if wanted & {part.lower() for part in folder.resolve().parts}:
        return []
    text = f"the adapter says that it was trained on {base}; what it is merged into is {folder}"
    hint = "its tensors fit by name and shape; make sure that this is the same model under another name"
    return [Diagnostic("F593", text, adapter.name, hint, "warning")]


def _misfits(adapter: Adapter, problems: Sequence[str], where: str) -> LadingError:
    base = adapter.config.base
    of = f"it was trained on {base}" if base else "it does not say what it was trained on"
    shown = [
        Diagnostic("F592", text, adapter.name, f"{of}; the base given is {where}") for text in problems[:MAX_REPORTS]
    ]
    if len(problems) > MAX_REPORTS:
        text = f"{len(problems) - MAX_REPORTS} more changes of the adapter fit no tensor of the base"
        shown.append(Diagnostic("F592", text, adapter.name))
    return LadingError.of(shown)


class _Merging:
    """One adapter and the tensors that it changes in place; what does not fit is told as text."""

    def __init__(self, adapter: Adapter, tensors: dict[str, Tensor], tied: Tied | None) -> None:
        self.adapter = adapter
        self.config = adapter.config
        self.tensors = tensors
        self.tied = tied
        self.changed: set[str] = set()

    def changes(self) -> list[Change]:
        """The changes that are to be made; where a tie is kept, those of the head are its embedding's and made once."""
        found = list(self.adapter.changes.values())
        tied = self.tied
        if tied is None or not self.config.keeps_tie or tied.head in self.tensors:
            return found
        rest = [change for change in found if self._name(change.module, "weight") != tied.head]
        embedding = any(self._name(change.module, "weight") == tied.embedding for change in rest)
        return rest if embedding else found

    def apply(self, change: Change) -> str:
        """Make one change; returns why it cannot be made, or nothing."""
        self._check_weight(change)
        problem = ""
        if not change.parts.keys() <= {"bias", "bias_added"}:
            name = self._name(change.module, "weight")
            if name is None:
                near = suggest(f"{change.module}.weight", [item for item in self.tensors if item.endswith(".weight")])
                return f"the base has no tensor for module {change.module} of the adapter {near}".rstrip()
            problem = self._weight(change, name)
        return problem or self._bias(change)

    def _check_weight(self, change: Change) -> None:
        """Refuse a weight for what is no sum; F591."""
        if self.adapter.weight == 1.0:
            return
        for part in WHOLE:
            if part in change.parts:
                message = f"a weight of {self.adapter.weight:g} means nothing for module {change.module}: {WHOLE[part]}"
                raise LadingError("F591", message, self.adapter.name, "leave the weight out")

    # ---- names ----

    def _name(self, module: str, ending: str) -> str | None:
        """The tensor of a module: by its whole name, else the only one that ends like it; None where there is none."""
        name = f"{module}.{ending}"
        if name in self.tensors or (self.tied is not None and name == self.tied.head):
            return name
        layer = _LAYER.search(module)
        tail = name[layer.start() :] if layer else f"{module.rpartition('.')[2]}.{ending}"
        found = [item for item in self.tensors if item == tail or item.endswith(f".{tail}")]
        found = [item for item in found if not _TOWER.search(item)]
        if not found and self.tied is not None and f".{self.tied.head}".endswith(f".{tail}"):
            return self.tied.head
        return found[0] if len(found) == 1 else None

    # ---- numbers ----

    def _weight(self, change: Change, name: str) -> str:
        """Change the weight of a module; returns why it cannot be done, or nothing."""
        parts = change.parts
        base = self._stored(name)
        for part in ("base", "weight"):
            if part in parts:
                if parts[part].shape != base.shape:
                    return _other_shape(change.module, parts[part].shape, base)
                base = parts[part]
        result = base
        if change.factors is not None:
            a, b = (parts[part] for part in change.factors)
            # The weight of an embedding is the transpose of the product, and so is one that is stored as [in, out].
            turned = change.factors[0] == "embedding_a" or self.config.transposed
            left, right = (transposed(a), transposed(b)) if turned else (b, a)
            shape = (left.shape[0], right.shape[1])
            if shape != base.shape:
                return _other_shape(change.module, shape, base)
            result = low_rank(cast(base, F32), left, right, self.adapter.weight * self.config.factor_of(change.module))
        if "lengths" in parts:
            rows = transposed(result) if self.config.transposed else result
            lengths = reshaped(parts["lengths"], (parts["lengths"].type.size or 0,))
            if lengths.shape != rows.shape[:1]:
                return f"module {change.module} has {lengths.shape[0]} lengths for {rows.shape[0]} rows"
            result = row_lengths(rows, lengths)
            result = transposed(result) if self.config.transposed else result
        if "token_rows" in parts:
            problem, result = self._rows(change, result)
            if problem:
                return problem
        self._put(name, result, self.config.keeps_tie or "token_rows" in parts)
        return ""

    def _stored(self, name: str) -> Tensor:
        if name in self.tensors or self.tied is None:
            return self.tensors[name]
        return self.tensors[self.tied.embedding]

    def _put(self, name: str, tensor: Tensor, keeps_tie: bool) -> None:
        """Set a weight; embedding and output matrix that are one become two, unless the adapter keeps them tied."""
        tied = self.tied
        if tied is not None and name in (tied.embedding, tied.head) and tied.head not in self.tensors:
            if keeps_tie:
                name = tied.embedding
            else:
                self.tensors[tied.head] = self.tensors[tied.embedding]
        self._set(name, tensor)

    def _set(self, name: str, tensor: Tensor) -> None:
        self.tensors[name] = tensor
        self.changed.add(name)

    def _rows(self, change: Change, base: Tensor) -> tuple[str, Tensor]:
        """A matrix with the rows of some tokens in place of its own; or why there is none."""
        rows, tokens = change.parts["token_rows"], self.config.tokens_of(change.module)
        if rows.shape != (len(tokens), *base.shape[1:]) or len(set(tokens)) != len(tokens):
            return f"module {change.module} has rows of shape {list(rows.shape)} for {len(tokens)} tokens", base
        if tokens and max(tokens) >= base.shape[0]:
            return f"module {change.module} has a row for token {max(tokens)}; the base has {base.shape[0]} rows", base
        index = np.arange(base.shape[0])
        index[list(tokens)] = base.shape[0] + np.arange(len(tokens))
        return "", row_gather(row_concat(cast(base, F32), cast(rows, F32)), index)

    def _bias(self, change: Change) -> str:
        """Change the bias of a module; returns why it cannot be done, or nothing."""
        given, added = change.parts.get("bias"), change.parts.get("bias_added")
        if given is None and added is None:
            return ""
        name = self._name(change.module, "bias")
        if name is None:
            return f"the base has no bias for module {change.module}, and the adapter changes it"
        base = self.tensors[name]
        for part in (given, added):
            if part is not None and part.shape != base.shape:
                return _other_shape(f"{change.module} (bias)", part.shape, base)
        result = base if given is None else given
        if added is not None:
            factor = self.adapter.weight * self.config.factor_of(change.module)
            column, one = (*base.shape, 1), InlineTensor(np.ones((1, 1), np.float32))
            total = low_rank(reshaped(cast(result, F32), column), reshaped(cast(added, F32), column), one, factor)
            result = reshaped(total, base.shape)
        self._set(name, result)
        return ""


def _other_shape(module: str, shape: Sequence[int], base: Tensor) -> str:
    return f"module {module} of the adapter has shape {list(shape)}, that of the base {list(base.shape)}"


__all__ = ["Merged", "Tied", "merge", "with_adapters"]
