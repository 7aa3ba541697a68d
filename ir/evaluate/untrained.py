"""Whether a language model looks trained, judged by how it predicts text.

A model that has learnt anything guesses the next token of some text better than chance, which costs the logarithm of
the vocabulary in nats. Weights as an initializer leaves them give nearly equal scores to all tokens; random weights of
any other size are wrong with confidence. Both are above chance on every text.
"""

from __future__ import annotations

import math

import numpy as np

CHANCE = 0.9
"""Share of chance from which a prediction counts as a guess."""

PIECE = 1 << 21
"""Scores that are looked at together."""

FLAT = 0.95
"""Share of the largest entropy from which scores say nothing."""


class Guesses:
    """Gathers how well texts are predicted."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._texts: list[float] = []
        self._entropies: list[float] = []

    @property
    def chance(self) -> float:
        """Nats a token that guessing costs."""
        return math.log(self.vocabulary)

    @property
    def best(self) -> float:
        """Nats a token on the text that was predicted best; infinite without any."""
        return min(self._texts, default=math.inf)

    def add(self, logits: np.ndarray, ids: np.ndarray | None) -> None:
        """Count in a text: its logits float[tokens, vocabulary], and its ids; None where they are no text."""
        step = max(1, PIECE // self.vocabulary)
        entropy = loss = 0.0
        for start in range(0, len(logits), step):
            rows = logits[start : start + step].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
            entropy -= float((np.exp(rows) * rows).sum())
            if ids is not None:
                following = ids[start + 1 : start + step + 1]
                loss -= float(rows[np.arange(len(following)), following].sum())
        self._entropies.append(entropy / max(1, len(logits)))
        if ids is not None and len(ids) > 1:
            self._texts.append(loss / (len(ids) - 1))

    @property
    def untrained(self) -> bool:
        """True when no text is predicted better than by chance, or, without text, when all scores are alike."""
        if self.vocabulary < 2 or not self._entropies:
            return False
        if self._texts:
            return self.best >= CHANCE * self.chance
        return min(self._entropies) >= FLAT * self.chance

    def __str__(self) -> str:
        if self._texts:
            return f"{self.best:.2f} nats a token on the text it knows best, guessing costs {self.chance:.2f}"
        return f"its scores are spread as evenly as {min(self._entropies):.2f} of {self.chance:.2f} nats"


__all__ = ["Guesses"]
