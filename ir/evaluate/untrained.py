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
        rows = logits.astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        logs = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        self._entropies.append(float(-(np.exp(logs) * logs).sum(axis=1).mean()))
        if ids is not None and len(ids) > 1:
            self._texts.append(float(-logs[np.arange(len(ids) - 1), ids[1:]].mean()))

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
