"""A way to an MNN file: written by us, or by the converter of MNN's wheel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import backends.contract as c
from backends.backend import Order
from backends.mnn.target.releases import MnnTarget
from ir.base.diag import Diagnostic
from ir.graph.graph import Graph

if TYPE_CHECKING:
    from backends.mnn.modules.verify import Measurement

MODEL = "model.mnn"
WEIGHTS = MODEL + ".weight"
"""Where modules look for the weights of a model."""


class Way:
    """One module in the making.

    Attributes:
        order: what is asked for.
        target: what the module must run on.
        pipeline: what was run, as text; empty where it is what compile runs on models of this format anyway.
        runs: what was measured.
        warnings: what the user should know.
    """

    def __init__(self, order: Order, target: MnnTarget, pipeline: str = "") -> None:
        self.order = order
        self.target = target
        self.pipeline = pipeline
        self.runs: Sequence[Measurement] = ()
        self.warnings: list[Diagnostic] = []

    def emit(self, graph: Graph, folder: Path) -> Mapping[str, str]:
        """Write the module; the role of each file by its name."""
        raise NotImplementedError

    def verify(self, graph: Graph, original: Graph, folder: Path) -> None:
        """Run it and compare; LadingError when it is below the bar."""
        raise NotImplementedError

    def weights(self, graph: Graph) -> tuple[c.WeightEntry, ...]:
        """How each weight is stored that is not as it was."""
        return ()


__all__ = ["MODEL", "WEIGHTS", "Way"]
