"""A cell of the matrix without the checkpoint: a model directory against what its own files say in float arithmetic.

Graph and weights are read back from the directory and evaluated in onnxruntime, so it shows whether a release computes
what is written. Whether what is written is the checkpoint's model, nobody knows without the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tools.matrix.cell import TOKENS, Artefact, Kind, Source, digest_of, rows_of

if TYPE_CHECKING:
    from ir.evaluate.evaluator import Evaluator
    from ir.graph.graph import Graph

LONGEST = 1 << 15
"""Context of a model whose configuration names none."""


class FolderSource(Source):
    """What a model directory tells of itself in place of its checkpoint."""

    referenced = False
    token_ids: list[list[int]] = []  # noqa: RUF012 - there is no original tokenizer
    text_form_ids: list[list[int]] = []  # noqa: RUF012
    prompts = "no checkpoint is named whose chat template could be compared"

    def check(self) -> None:
        """Raise now what makes the directory unfit for being read: B710 to B741, F640 to F646."""
        assert self.graph

    @cached_property
    def graph(self) -> Graph:
        """The graph that is stored, from the inputs that the runtime feeds to logits."""
        from backends.mnn.lift.folder import lifted
        from backends.mnn.read.model_folder import Subject
        from backends.mnn.target.releases import target
        from backends.mnn.write.rewritten_folder import describe, require_readable
        from ir.facts.model_card import ModelCard

        subject = Subject(self.folder)
        require_readable(subject)
        graph, _ = lifted(subject, target("portable"))
        with ThreadPoolExecutor(1) as pool:
            describe(graph, subject, pool)
        card = ModelCard.of(graph)
        graph.set_fact(card.name, replace(card, context=card.context or LONGEST))
        return graph

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the files that are read."""
        return digest_of(self.folder, self.card.sources)

    @cached_property
    def ids(self) -> list[int]:
        """Token ids from all over the vocabulary, within the context."""
        rng = np.random.default_rng(5)
        count = min(TOKENS, self.card.context or TOKENS)
        return [int(token) for token in rng.integers(0, self.card.vocab_size, count)]

    @cached_property
    def _evaluator(self) -> Evaluator:
        from backends.mnn.verify.logits import MEMORY_LIMIT
        from ir.evaluate.evaluator import Evaluator

        return Evaluator(self.graph, memory_limit=MEMORY_LIMIT)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Float32[len(ids), vocabulary] of the stored weights."""
        feeds = self.graph.facts["dynamic-inputs"].feeds(self.graph, np.array(list(ids)))
        return rows_of(self._evaluator.run(feeds))


class FolderArtefact(Artefact):
    """A model directory whose only reference is what it stores."""

    @property
    def kind(self) -> Kind:
        """The stored weights are all there is."""
        return "decoded weights"

    def _decoded(self, ids: Sequence[int]) -> np.ndarray:
        return self.source.logits(ids)
