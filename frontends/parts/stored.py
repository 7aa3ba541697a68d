"""The tensors of a checkpoint as parts ask for them: by name and shape, every difference told at the end, all at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ir.base.diag import Diagnostic, LadingError, suggest
from ir.base.types import F32, TensorType
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.supposed import Supposed

STORED_TYPES = ("bf16", "f16", "f32", "f64")
"""Element types a checkpoint may have."""

MAX_REPORTS = 12
"""Problems of one sort that are listed singly; the rest is counted."""


class Stored:
    """The tensors of one checkpoint.

    Attributes:
        tensors: by name; None for a model of which only the configuration is known: then every tensor that is asked for
            is there, and `has` says no.
        used: the names asked for, with the shapes that were called for.
        dtypes: element types of the tensors used.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None, where: str, owner: str) -> None:
        self.tensors = tensors
        self.where = where
        self.owner = owner
        self.used: dict[str, tuple[int, ...]] = {}
        self.passed: set[str] = set()
        self._missing: dict[str, str] = {}
        self._shapes: list[Diagnostic] = []
        self._dtypes: list[Diagnostic] = []

    @property
    def names(self) -> Collection[str]:
        """All stored names."""
        return self.tensors.keys() if self.tensors is not None else ()

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Element types of what was used, sorted."""
        there = self.tensors or {}
        return tuple(sorted({there[name].type.dtype.name for name in self.used if name in there}))

    def has(self, name: str) -> bool:
        """True when a tensor is stored."""
        return self.tensors is not None and name in self.tensors

    def get(self, name: str, shape: Sequence[int], hint: str = "") -> Tensor:
        """A tensor as float32; what is wrong with it is told by `finish`, and a stand-in returned."""
        wanted = tuple(shape)
        self.used[name] = wanted
        tensor = None if self.tensors is None else self.tensors.get(name)
        if tensor is None:
            if self.tensors is not None:
                self._missing[name] = hint
            return Supposed(TensorType(F32, wanted), name)
        type_ = tensor.type
        if type_.dtype.name not in STORED_TYPES:
            hint = "quantized checkpoints of this format are not read; start from the bf16, fp16 or fp32 one"
            message = f"tensor {name} is stored as {type_.dtype}, not as one of {', '.join(STORED_TYPES)}"
            self._dtypes.append(Diagnostic("F553", message, tensor.loc, hint))
            return Supposed(TensorType(F32, wanted), name)
        if type_.shape != wanted:
            message = f"tensor {name} has shape {list(type_.shape or ())}, but config.json calls for {list(wanted)}"
            self._shapes.append(Diagnostic("F552", message, tensor.loc))
            return Supposed(TensorType(F32, wanted), name)
        return cast(tensor, F32)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a stored tensor; empty when it is not stored."""
        tensor = (self.tensors or {}).get(name)
        return tuple(tensor.shape) if tensor is not None else ()

    def skip(self, name: str) -> None:
        """A stored tensor that is known and not needed."""
        self.passed.add(name)

    def finish(self, needless: Sequence[str], prefix: str, extra_hint: Mapping[str, str]) -> None:
        """Tell every tensor that is missing, left over or will not do.

        Args:
            needless: regular expressions of names that the computation does not need, matched from the start of the name
                after the prefix, or of the whole name.
            prefix: what stands before the decoder's names.
            extra_hint: what to say of a name that is left over.

        Raises:
            LadingError: F550 missing, F551 left over, F552 misshapen, F553 of a type that is not read.
        """
        extra = [name for name in self.names if name not in self.used and name not in self.passed]
        extra = [name for name in extra if not _matches(needless, name, prefix)]
        problems = [
            *self._of_missing(extra),
            *self._of_extra(extra, extra_hint),
            *_listed("F552", "misshapen", self._shapes, self.where),
            *_listed("F553", "of a type that is not read", self._dtypes, self.where),
        ]
        if problems:
            raise LadingError.of(problems)

    def _of_missing(self, extra: Sequence[str]) -> list[Diagnostic]:
        found = []
        for name, hint in list(self._missing.items())[:MAX_REPORTS]:
            found.append(
                Diagnostic("F550", f"tensor {name} is missing", self.where, hint or suggest(name, extra[:500]))
            )
        return found + _rest("F550", "missing", len(self._missing), self.where)

    def _of_extra(self, extra: Sequence[str], hints: Mapping[str, str]) -> list[Diagnostic]:
        found = []
        for name in extra[:MAX_REPORTS]:
            hint = hints.get(name) or suggest(name, list(self._missing)[:500])
            found.append(Diagnostic("F551", f"tensor {name} is not used by the {self.owner} family", self.where, hint))
        return found + _rest("F551", "not used", len(extra), self.where)


def _matches(patterns: Sequence[str], name: str, prefix: str) -> bool:
    texts = (name.removeprefix(prefix), name)
    return any(re.match(pattern, text) for pattern in patterns for text in texts)


def _listed(code: str, what: str, problems: list[Diagnostic], where: str) -> list[Diagnostic]:
    return problems[:MAX_REPORTS] + _rest(code, what, len(problems), where)


def _rest(code: str, what: str, count: int, where: str) -> list[Diagnostic]:
    more = count - MAX_REPORTS
    return [Diagnostic(code, f"{more} more tensors are {what}", where)] if more > 0 else []


__all__ = ["MAX_REPORTS", "STORED_TYPES", "Stored"]
