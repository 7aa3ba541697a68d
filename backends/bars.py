"""How far a compiled model may be from the original, by the narrowest width of its weights.

Two lines for each width. `KL_USUAL` and `TOP1_USUAL` are what trained models lose at most, with codes rounded to nearest
from 4 bits on and chosen by GPTQ below: beyond them the compilation is passed with a warning. Beyond `KL_BARS` and
`TOP1_BARS` a trained model has lost what it learnt, and nothing is written.

They follow from what widths cost on trained models: the example and `benchmarks/results` (4 bits in blocks of 64: KL
0.014 to 0.020, first choice kept in 90 to 92 percent; 3 bits 0.075 and 83 percent, by GPTQ 0.027 and 90 percent; 2 bits
0.48 and 60 percent, by GPTQ 0.13 and 79 percent; 5, 6, 8 bits 0.0044, 0.0010, 0.0002), and the figures published for
llama.cpp's formats on Llama 3 8B, whose vocabulary is sixty times as large (4 bits in blocks of 32: KL 0.073).
"""

from __future__ import annotations

from dataclasses import dataclass

from ir.base.diag import Diagnostic

KL_BARS = {32: 1e-5, 16: 1e-3, 8: 0.02, 7: 0.04, 6: 0.08, 5: 0.2, 4: 0.4, 3: 0.8, 2: 1.5}
"""Largest allowed mean KL divergence from the float model, by the narrowest width of a layer."""

TOP1_BARS = {32: 0.99, 16: 0.95, 8: 0.85, 7: 0.8, 6: 0.75, 5: 0.7, 4: 0.5, 3: 0.4, 2: 0.25}
"""Smallest allowed share of places at which the float model's first choice is kept, likewise."""

KL_USUAL = {32: 1e-5, 16: 1e-3, 8: 0.01, 7: 0.015, 6: 0.02, 5: 0.05, 4: 0.12, 3: 0.15, 2: 0.15}
"""Mean KL divergence above which a width costs more than it does on trained models, with the best method below 4 bits."""

TOP1_USUAL = {32: 0.99, 16: 0.98, 8: 0.95, 7: 0.93, 6: 0.91, 5: 0.88, 4: 0.8, 3: 0.78, 2: 0.75}
"""Share of first choices kept below which it does."""

NO_TEXT = 2.0
"""Factor of the bars of divergence on ids that are no text."""

ERROR_BARS = {32: 1e-3, 16: 1e-2, 8: 0.1, 7: 0.15, 6: 0.2, 5: 0.3, 4: 0.6, 3: 1.0, 2: float("inf")}
"""Largest allowed root mean square of what an output is off, relative to that of the output itself, likewise."""

EXACT_BAR = 1e-3
"""Largest difference of logits that rounding may cause, per unit of the larger of 1 and a tenth of the largest logit."""


def exact_bar(max_logit: float) -> float:
    """How far logits of exact arithmetic may be off, where the largest reference logit has this size."""
    return EXACT_BAR * max(1.0, max_logit / 10)


HALF_BAR = 0.02
"""Largest difference of logits that computing in half precision may cause, per unit of the largest logit. Exports of
decoders in float16 differ from their float32 evaluation by 0.002 to 0.005."""


def half_bar(max_logit: float) -> float:
    """How far logits that were computed in half precision may be off."""
    return HALF_BAR * max(1.0, max_logit)


@dataclass(frozen=True)
class Loss:
    """What a compiled model has lost against the float model.

    Attributes:
        kl: mean KL divergence, in nats.
        top1: share of places at which both put the same token first.
        bits: narrowest width that is stored.
        what: how it was run, for messages.
        rounded: factor of the bars for what the runtime rounds besides.
        text: measured on text. What trained models lose on ids at random is another matter: twice the divergence is
            allowed, and nothing is known to be usual.
    """

    kl: float
    top1: float
    bits: int
    what: str
    rounded: float = 1.0
    text: bool = True

    @property
    def problem(self) -> str:
        """What is below the bars; empty when nothing is."""
        limit = KL_BARS[self.bits] * self.rounded * (1 if self.text else NO_TEXT)
        if not self.kl <= limit:
            return (
                f"KL divergence {self.kl:.3g} from the float model with {self.what} is above {limit:.3g}, {self._bar}"
            )
        if self.text and not self.top1 >= TOP1_BARS[self.bits]:
            kept = f"the float model's first choice is kept in {self.top1:.1%} of places with {self.what}"
            return f"{kept}, which is below {TOP1_BARS[self.bits]:.0%}, {self._bar}"
        return ""

    @property
    def _bar(self) -> str:
        return f"the bar for {self.bits} bits"

    @property
    def usual(self) -> bool:
        """True when trained models lose as much at this width."""
        return self.text and self.kl <= KL_USUAL[self.bits] * self.rounded and self.top1 >= TOP1_USUAL[self.bits]

    def told(self, trained: bool) -> str:
        """The loss in a few words; of a model that looks untrained it says nothing."""
        lost = f"KL {self.kl:.1e}, top-1 {self.top1:.1%}"
        if not trained:
            return f"{lost}, not judged since the checkpoint looks untrained"
        return f"{lost}, {'usual for ' if self.usual else ''}{self.bits} bits"


def judged(loss: Loss, code: str, hint: str, *, trained: bool, bar: float | None = None) -> list[Diagnostic]:
    """The problems of a loss.

    Args:
        loss: what was measured.
        code: code of an error.
        hint: what to do about an error.
        trained: judge by the bars of trained models; they say nothing of random weights.
        bar: the user's own bar for the divergence, which takes the place of all others.
    """
    if bar is not None:
        if loss.kl <= bar:
            return []
        message = f"KL divergence {loss.kl:.3g} from the float model with {loss.what} is above {bar:.3g}, the bar given"
        return [Diagnostic(code, message, hint=hint)]
    if not trained:
        return []
    if loss.problem:
        return [Diagnostic(code, loss.problem, hint=hint)]
    if loss.usual or not loss.text:
        return []
    usual = f"KL {KL_USUAL[loss.bits] * loss.rounded:g} and {TOP1_USUAL[loss.bits]:.0%} of first choices are usual"
    message = f"{loss.bits} bits cost more than on other trained models: KL {loss.kl:.3g}, {loss.top1:.1%}; {usual}"
    return [Diagnostic("V722", message, hint=hint, severity="warning")]


__all__ = [
    "ERROR_BARS", "EXACT_BAR", "HALF_BAR", "KL_BARS", "KL_USUAL", "TOP1_BARS", "TOP1_USUAL", "Loss", "exact_bar",
    "half_bar", "judged",
]  # fmt: skip
