"""What the compiler itself makes of an ONNX file: tried in memory, as far as the form that is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends.mnn.target.releases import MnnTarget
from frontends.onnx.beside import tokenizer_folder
from frontends.onnx.embedding import find_rows
from frontends.onnx.load import load
from ir.base.diag import Diagnostic, LadingError
from ir.facts.free_tensors import FreeTensors
from ir.facts.inputs import DynamicInputs
from ir.facts.raised import Raised
from ir.graph.graph import Graph
from passes.framework.context import PassContext
from passes.framework.manager import Instrument, PassManager, PassReport, Step
from passes.inputs.language_model import look_up_rows, rows_input

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
        free: what tensors that nothing makes were taken to be.
        tokenizer: a tokenizer lies beside the file.
    """

    language: bool = False
    refusal: Diagnostic | None = None
    unread: bool = False
    warnings: tuple[Diagnostic, ...] = ()
    raised: Raised | None = None
    inputs: DynamicInputs | None = None
    free: FreeTensors | None = None
    tokenizer: bool = False


class _Said(Instrument):
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
        graph = load(path)
        language = MnnLlm().accepts(graph)
    except Exception as error:
        return Attempt(refusal=_told(error, path), unread=True)
    free = graph.fact(FreeTensors)
    said, refusal = _Said(), None
    try:
        if language:
            _with_embedding(graph, path)
        PassManager(_LANGUAGE if language else _GENERAL, [said]).run(graph, PassContext(target))
        _require_writable(graph, target)
    except Exception as error:
        refusal = _told(error, path)
    return Attempt(
        language,
        refusal,
        False,
        tuple(item for item in said.warnings if item.severity == "warning"),
        graph.fact(Raised),
        graph.fact(DynamicInputs),
        free,
        tokenizer_folder(path) is not None,
    )


def _with_embedding(graph: Graph, path: Path) -> None:
    """Give a graph that takes rows of an embedding the one beside its file.

    Raises:
        LadingError: B673 there is none, B674 it does not fit.
    """
    rows = rows_input(graph)
    if rows is not None:
        look_up_rows(graph, rows, find_rows(path, None, rows).table)


def _require_writable(graph: Graph, target: MnnTarget) -> None:
    """Refuse what the writer of the file would refuse; nothing is written.

    Raises:
        LadingError: what the writer says.
    """
    from backends.mnn.lower.fit import check_storage, fit
    from backends.mnn.lower.stage import problems
    from backends.mnn.write.net_json import build_net
    from backends.mnn.write.weight_layout import plan_layout

    if found := problems(graph):
        raise LadingError.of(found)
    fit(graph, target)
    layout = plan_layout(graph)
    check_storage(layout, target)
    build_net(graph, layout)


def _told(error: Exception, path: Path) -> Diagnostic:
    """What an error says; a fault of the program is one of the file too as long as it lasts, and hides nothing else."""
    if isinstance(error, LadingError):
        return error.diagnostics[0]
    message = f"a fault of this program: {type(error).__name__}: {error}"
    return Diagnostic("U980", message, str(path), "please send the command and the file to the authors")


__all__ = ["Attempt", "attempt"]
