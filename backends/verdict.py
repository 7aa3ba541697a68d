"""The last line of a compilation: whether what was written can be relied on, and what stands against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from backends.bars import Loss, exact_bar, half_bar
from frontends.checkpoint.original import Original, original_logits
from ir.base.diag import Diagnostic
from ir.evaluate.divergence import Distance, DistanceMeter
from ir.evaluate.untrained import Guesses
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph

Outcome = Literal["passed", "passed with warnings", "not verified"]

ONLY_FULL = "--verify full compares with it"
"""Why a quick verification says nothing of the original implementation."""

NO_CHECKPOINT = "the model is no checkpoint"

OWN_CODE = "auto_map"
"""The key of a configuration that names code of its own, which is never run and which transformers may differ from."""


ROUNDED_BITS = 8
"""Activations that a file rounds cost it at most what weights of as many bits cost."""


@dataclass(frozen=True)
class Reading:
    """Whether a model was read right: a checkpoint as the original implementation reads it, an ONNX file as onnxruntime.

    Attributes:
        original: that implementation and the distance from it, where it was run.
        distance: of the float graph; None where it was not run.
        unread: keys of the configuration that nobody here knows.
        expected: the model is compared at every level, so that it is told where it was not.
    """

    original: Original = field(default_factory=lambda: Original(reason=ONLY_FULL))
    distance: Distance | None = None
    unread: Sequence[str] = ()
    expected: bool = False

    @property
    def bar(self) -> float:
        """How far the logits may be off."""
        if self.distance is None:
            return 0.0
        return (half_bar if self.original.half else exact_bar)(self.distance.max_logit)

    @property
    def verified(self) -> bool:
        """The float graph gives the logits of the original implementation, as far as that does not round them away."""
        if self.distance is None:
            return False
        if self.original.rounds:
            return not self._loss(self.distance).problem
        return self.distance.max_abs <= self.bar

    def _loss(self, distance: Distance) -> Loss:
        """What rounding activations costs the original, on ids that need not be text."""
        return Loss(distance.kl, distance.top1, ROUNDED_BITS, "rounded activations", text=False)

    @property
    def doubts(self) -> Sequence[str]:
        """Unknown keys that nothing has cleared."""
        return [key for key in self.unread if not self.verified or key == OWN_CODE]

    @property
    def problems(self) -> list[Diagnostic]:
        """V720 when the logits differ by more than rounding."""
        if self.distance is None or self.verified:
            return []
        if self.original.rounds:
            message = (
                f"{self.original.name} gives other logits than the model without the rounding of activations: "
                f"{self._loss(self.distance).problem}"
            )
            hint = "nothing was written; export the model with quantized weights only"
            return [Diagnostic("V720", message, hint=hint)]
        worst = self.distance.max_abs
        what, report = ("model", "model") if self.original.file else ("checkpoint", "configuration")
        message = (
            f"the {what} as read here gives other logits than {self.original.name}: {worst:.3g} off where "
            f"{self.bar:.3g} is allowed, first choice kept in {self.distance.top1:.1%} of places"
        )
        keys = f"keys that are not read: {', '.join(self.unread)}; " if self.unread else ""
        return [Diagnostic("V720", message, hint=f"{keys}nothing was written; please report the {report}")]


Implementation = Callable[[Sequence[Sequence[int]]], Original]
"""Computes the logits of sequences of token ids, or says why it does not."""


def transformers_of(folder: Path, card: ModelCard) -> Implementation:
    """The original implementation of a checkpoint, as something to compare with."""
    return partial(
        original_logits,
        folder,
        parameters=card.parameters or 0,
        vocabulary=card.vocab_size or 0,
        adapters=card.adapters,
    )


def compare_reading(
    folder: Path | None, original: Graph, sequences: Sequence[Sequence[int]], floats: Sequence[np.ndarray]
) -> Reading:
    """Compare the float graph with the original implementation.

    Args:
        folder: the checkpoint; None for models that are none.
        original: the graph that was read.
        sequences: token ids.
        floats: logits float32[tokens, vocabulary] of the graph for each.
    """
    card = ModelCard.of(original)
    unread = card.unread.get("unknown", ())
    if folder is None:
        return Reading(Original(reason=NO_CHECKPOINT), unread=unread)
    return compared(transformers_of(folder, card)(sequences), floats, unread)


def compared(found: Original, floats: Sequence[np.ndarray], unread: Sequence[str] = ()) -> Reading:
    """Compare logits of the float graph with those that somebody else computed.

    Args:
        found: those, or why there are none.
        floats: logits float32[tokens, vocabulary] of the graph for each sequence.
        unread: keys of the configuration that nobody here knows.
    """
    if not found.name:
        return Reading(found, unread=unread)
    chosen = [item[rows] for item, rows in zip(floats, found.rows, strict=True)] if found.rows else floats
    if [item.shape for item in found.logits] != [item.shape for item in chosen]:
        return Reading(replace(found, name="", reason=f"{found.name} gives logits of another shape"), unread=unread)
    meter = DistanceMeter()
    for wanted, got in zip(found.logits, chosen, strict=True):
        meter.add(wanted, got)
    return Reading(found, meter.result(), unread)


def untrained(guesses: Guesses) -> Diagnostic:
    """The warning of a model that predicts nothing."""
    message = f"the checkpoint looks untrained: {guesses}; what its widths cost is not judged"
    hint = "if it is trained, it was read wrongly: --verify full compares with transformers"
    return Diagnostic("V721", message, hint=hint, severity="warning")


@dataclass(frozen=True)
class Verdict:
    """What a compilation ends with.

    Attributes:
        outcome: in one word or three.
        text: the line.
        original: the implementation whose logits those of the float model are; empty where none was run.
        original_note: why none was run, or how far they are apart.
        unread: keys of the configuration that were not read, by weight.
    """

    outcome: Outcome
    text: str
    original: str = ""
    original_note: str = ""
    unread: Mapping[str, Sequence[str]] = field(default_factory=dict)


def verdict_of(
    judged: str | None, reading: Reading, warnings: Sequence[Diagnostic], unread: Mapping[str, Sequence[str]]
) -> Verdict:
    """The verdict on what was written.

    Args:
        judged: what was run and how it did, such as ``on MNN 3.6.1: KL 8.8e-03``; None when nothing was.
        reading: how the checkpoint was read.
        warnings: all of the compilation.
        unread: keys that were not read, by weight.
    """
    doubts = reading.doubts
    note = f"off by {reading.distance.max_abs:.1e} at most" if reading.distance is not None else reading.original.reason
    original = reading.original.name if reading.verified else ""
    parts = []
    if judged is None:
        outcome: Outcome = "not verified"
        parts.append("not verified: nothing was run")
    else:
        outcome = "passed with warnings" if warnings else "passed"
        parts.append(f"{_counted(warnings)} {judged}")
    if original:
        parts.append(f"{'compared with' if reading.original.file else 'verified against'} {original}")
    elif reading.expected and judged is not None:
        what = f"{reading.original.file} on onnxruntime" if reading.original.file else "transformers"
        parts.append(f"not compared with {what}: {reading.original.reason}")
    if doubts:
        parts.append(f"not verified against the original implementation, which may read {', '.join(doubts[:6])}")
    return Verdict(outcome, "; ".join(parts), original, note, unread)


def _counted(warnings: Sequence[Diagnostic]) -> str:
    if not warnings:
        return "passed"
    codes = ", ".join(dict.fromkeys(item.code for item in warnings))
    return f"passed with {len(warnings)} warning{'s' if len(warnings) > 1 else ''} ({codes})"


__all__ = [
    "Implementation",
    "Reading",
    "Verdict",
    "compare_reading",
    "compared",
    "transformers_of",
    "untrained",
    "verdict_of",
]
