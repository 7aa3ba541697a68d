"""What a backend is: it writes graphs in one format, and may be something that ``compile`` emits to.

A row of the table ``backends`` is any object with ``suffixes`` and ``write(graph, path)``, which is what commands need
that write a graph to one file. A backend that ``compile`` can emit to is a `Backend` that overrides `begin`: it owns
its targets, its default pipeline, what is written, how that is verified, and what the contract says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ir.base.diag import Diagnostic, LadingError
from ir.target.target import Target

if TYPE_CHECKING:
    import numpy as np

    from backends.contract import Contract
    from backends.plan import Planned, Repeats
    from backends.verdict import Reading, Verdict
    from ir.graph.graph import Graph
    from ir.quant.statistics.samples import Samples
    from passes.framework.pipeline import Pipeline
    from passes.framework.registry import Registry

Verify = Literal["none", "quick", "full"]


def _silent(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        model: as the user named it.
        frontend: name of the frontend that reads it.
        path: its file or folder on this machine.
        title: what to call it.
        tokenizer: folder with its tokenizer; None where none belongs to it.
    """

    model: str
    frontend: str
    path: Path
    title: str
    tokenizer: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder that its files lie in."""
        return self.path if self.path.is_dir() else self.path.parent


@dataclass(frozen=True)
class Order:
    """One compilation as it is asked of a backend.

    Attributes:
        origin: the model.
        target: what the result must run on.
        options: the options that the backend understands and that were given, by name.
        verify: how much to read back and run.
        pool: runs jobs in parallel.
        side: runs one job beside them.
        jobs: runs jobs that are plain data, which may be done by other machines.
        say: told that a phase begins.
        weights: told how many weights of all are written.
        lap: told that a phase is over.
        measured_on: samples that passes measured with, once they are read, of models that read no text.
    """

    origin: Origin
    target: Target
    options: Mapping[str, Any]
    verify: Verify
    pool: Executor
    side: Executor
    jobs: Executor
    say: Callable[[str], None] = _silent
    weights: Callable[[int, int], None] = _silent
    lap: Callable[[str], None] = _silent
    measured_on: list[Samples] = field(default_factory=list)

    def inputs(self, graph: Graph, most: int) -> Mapping[str, Mapping[str, np.ndarray]] | None:
        """Inputs to verify on by what they were read from: those that are named, else some of those that passes measured
        with; None where neither is there.

        Args:
            graph: the model that they are for.
            most: how many of those that passes measured with.

        Raises:
            LadingError: U962, U963 as `ir.evaluate.given_feeds.read_inputs`.
        """
        if "inputs" in self.options:
            from ir.evaluate.given_feeds import read_inputs

            return read_inputs(self.options["inputs"], graph)
        found = [samples.first(most) for samples in self.measured_on]
        return {f"sample {number}": feed for samples in found for number, feed in enumerate(samples, 1)} or None


@dataclass(frozen=True)
class Made:
    """How a graph came to be, for its contract.

    Attributes:
        pipeline: canonical text of the pipeline.
        passes: name and counts of each pass that ran.
        warnings: what to warn the user of.
        verdict: what the compilation ends with.
    """

    pipeline: str
    passes: Sequence[tuple[str, Mapping[str, int]]] = ()
    warnings: Sequence[Diagnostic] = ()
    verdict: Verdict | None = None


class Rejected(LadingError):
    """What was written is not good enough, with what helps to decide what to do instead.

    Attributes:
        figures: what was measured, as a table.
        worst: weights whose stored numbers are farthest off: name, storage, relative error.
    """

    figures: Figures | None = None
    worst: Sequence[tuple[str, str, float]] = ()


@dataclass(frozen=True)
class Figures:
    """Measurements as a table for people; columns of `left` are words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = ()
    left: Sequence[str] = ()


class Compilation:
    """One compilation by a backend, from before the model is read until its contract is made.

    The steps are called in the order of the methods below; what a step finds is kept for the next.

    Attributes:
        order: what is asked for.
        folder: where the result is written, while `working`.
        emission: what was written, in the backend's own terms.
        verification: what was measured, in the backend's own terms; None when nothing was.
        warnings: what the user should know.
    """

    native: tuple[str, ...] = ()
    """Packages with native code to import before work starts when the result is verified, while interrupts wait."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.folder = Path()
        self.emission: Any = None
        self.verification: Any = None
        self.warnings: list[Diagnostic] = []

    @contextmanager
    def working(self, folder: Path) -> Iterator[None]:
        """Work into an empty folder; whatever runs beside the compiler begins and ends with this."""
        self.folder = folder
        yield

    def opened(self, graph: Graph) -> None:
        """Told of the graph as it was read, before any pass changes it."""

    def check(self, graph: Graph, pipeline: str) -> None:
        """Require that a pipeline ended in a graph that can be written; LadingError when it did not."""

    def emit(self, graph: Graph) -> None:
        """Write the graph into the folder; decide nothing and do not change what it computes."""
        raise NotImplementedError

    def verify(self, graph: Graph, original: Graph) -> None:
        """Run what was written and compare; LadingError when it is below the bar.

        Args:
            graph: what was emitted.
            original: the model as it was read, before any pass; one that came as a graph of its own, from the pass on that
                found out what the runtime feeds.
        """

    def contract(self, graph: Graph, made: Made) -> Contract:
        """What the result expects, consists of, and was tested with."""
        raise NotImplementedError

    def judged(self) -> str | None:
        """What was run and how it did, as the rest of a sentence that begins with "passed"; None when nothing was."""
        return None

    def reading(self) -> Reading:
        """Whether a checkpoint was read as the original implementation reads it."""
        from backends.verdict import Reading

        return Reading()

    def worst_weights(self, graph: Graph) -> Sequence[tuple[str, str, float]]:
        """The weights whose stored numbers are farthest off, worst first: name, storage, relative error."""
        return ()

    # ---- for people ----

    def lines(self) -> Sequence[tuple[str, str]]:
        """Further rows of the summary: a word and a text each."""
        return ()

    def figures(self) -> Figures | None:
        """What was measured, as a table."""
        return None

    def sample(self) -> tuple[str, str] | None:
        """A prompt and how the result continues it."""
        return None


class Backend:
    """Writes one format; every method has a default, so that a small backend is a few lines.

    Attributes:
        suffixes: endings of the files that `write` writes.
        runtime: what runs the result, for people; empty for backends that ``compile`` cannot emit to.
        passes: the pipeline that ``compile`` runs when none is named.
        options: the options of ``compile`` that this backend understands besides those for all.
        stores_weights: `write` reads every constant, so that what takes long to make is made before, in parallel.
        frontends: names of frontends whose models are compiled for this backend when none is named.
    """

    suffixes: tuple[str, ...] = ()
    runtime: str = ""
    passes: str = "canonicalize"
    options: frozenset[str] = frozenset()
    frontends: tuple[str, ...] = ()
    stores_weights: bool = False

    def write(self, graph: Graph, path: Path) -> None:
        """Write a graph to one file; LadingError when that is not possible."""
        raise LadingError("U916", "this backend writes no single files", str(path), "use compile --to")

    def accepts(self, graph: Graph) -> bool:
        """True when a model of any frontend is compiled for this backend when none is named."""
        return False

    def pipeline(self, frontend: str) -> str:
        """The pipeline that ``compile`` runs on models of a frontend when none is named."""
        return self.passes

    def completed(self, pipeline: Pipeline, registry: Registry) -> Pipeline:
        """A named pipeline with what this backend needs behind it, where it holds for every runtime."""
        return pipeline

    def target(self, text: str | None) -> Target:
        """What ``--target`` means; the usual target without text. LadingError for text that means nothing."""
        if text is not None:
            raise LadingError("U917", f"there is no target {text!r}: {self.runtime} has only one", hint="leave it out")
        return Target()

    def plan(
        self,
        graph: Graph,
        target: Target,
        options: Mapping[str, Any],
        *,
        repeats: Repeats,
        shares: Mapping[str, float],
        contexts: Sequence[int],
    ) -> Planned:
        """What writing a graph would give, from shapes alone; nothing is read and nothing written.

        Args:
            graph: what the pipeline ended in; it may hold one layer for many.
            target: what the result must run on.
            options: as of an `Order`.
            repeats: how often what is there once in the graph is there in the whole model.
            shares: by name of a constant, the share of tokens that needs it, where that is not all; by name of a dimension,
                its length as a share of the tokens.
            contexts: numbers of tokens to tell memory for; with none it is only found out whether the graph can be written.

        Raises:
            LadingError: U957 this backend makes no plans; what `Compilation.emit` refuses of a graph like this one.
        """
        raise LadingError(
            "U957", f"for {self.runtime or 'this backend'} nothing is planned", hint="choose --to mnn-llm"
        )

    def releases(self) -> Sequence[str]:
        """Releases of the runtime, each of them a target, the oldest first."""
        return ()

    def begin(self, order: Order) -> Compilation:
        """Begin a compilation; LadingError for what can be refused before work starts."""
        raise NotImplementedError


def emits(backend: Any) -> bool:
    """True for backends that ``compile`` can emit to."""
    return isinstance(backend, Backend) and type(backend).begin is not Backend.begin


__all__ = ["Backend", "Compilation", "Figures", "Made", "Order", "Origin", "Rejected", "Verify", "emits"]
