"""What the compiler itself makes of an ONNX file: tried in memory, as far as the form that is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.mnn.target.releases import MnnTarget
from frontends.onnx.load import load
from ir.base.diag import Diagnostic, LadingError
from ir.facts.inputs import DynamicInputs
from ir.facts.raised import Raised
from ir.graph.graph import Graph
from passes.framework.context import PassContext
from passes.framework.manager import Instrument, PassManager, PassReport, Step

_LANGUAGE, _GENERAL = "fp32", "mnn"
"""Pipelines that are tried: without choosing a precision, which takes numbers."""


@dataclass(frozen=True)
class Attempt:
    """What came of compiling a file.

    Attributes:
        language: it is taken for a language model.
        refusal: why it cannot be compiled; None when it can.
        unread: it cannot even be read.
        warnings: what the passes said.
        raised: what its parts were found to compute, and by what evidence.
        inputs: what discover-inputs found.
    """

    language: bool = False
    refusal: Diagnostic | None = None
    unread: bool = False
    warnings: tuple[Diagnostic, ...] = ()
    raised: Raised | None = None
    inputs: DynamicInputs | None = None


class _Told(Instrument):
    """Keeps what passes say until one of them fails."""

    def __init__(self) -> None:
        self.warnings: list[Diagnostic] = []

    def after(self, step: Step, graph: Graph, report: PassReport) -> None:
        """Collect the diagnostics of a pass."""
        self.warnings += report.diagnostics


def attempt(path: Path, target: MnnTarget) -> Attempt:
    """Compile a file in memory for a target; whatever is wrong with it is a result."""
    from backends.mnn.backend import MnnLlm

    try:
        graph = load(path, free="input")
        language = MnnLlm().accepts(graph)
    except LadingError as error:
        return Attempt(refusal=error.diagnostics[0], unread=True)
    told, refusal = _Told(), None
    try:
        PassManager(_LANGUAGE if language else _GENERAL, [told]).run(graph, PassContext(target))
    except LadingError as error:
        refusal = error.diagnostics[0]
    except Exception as error:  # what else is wrong with the file is told all the same
        message = f"a fault of this program: {type(error).__name__}: {error}"
        refusal = Diagnostic("U980", message, str(path), "please send the command and the file to the authors")
    return Attempt(
        language,
        refusal,
        False,
        tuple(item for item in told.warnings if item.severity == "warning"),
        graph.fact(Raised),
        graph.fact(DynamicInputs),
    )


__all__ = ["Attempt", "attempt"]
