"""What a pass is given besides the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar, overload

from ir.base.diag import Diagnostic, LadingError
from ir.base.executor import SERIAL
from ir.base.store import Store, default_store
from ir.graph.graph import Graph, Node
from ir.target.target import Target, default_target
from passes.rewrite.driver import rewrite
from passes.rewrite.rules import RewriteReport, RuleSet

T = TypeVar("T")
_MISSING: Any = object()


class PassContext:
    """What passes are given besides the graph: settings by type, rewriting, progress, diagnostics.

    Analyses need no help from here: `ir.graph.view.cached` keeps them on the graph until it changes.

    Args:
        settings: objects that passes ask for by type, such as an `ir.target.signature.Signature` or a target profile.
        progress: called with (done, total, what) by passes that take long.
        explain: collect why rules did not fire.
        executor: runs the work that passes split into jobs; the calling thread when None.
        store: where passes keep work between runs; that of the environment when None.

    Attributes:
        executor: never None.
        prepared: what `Pass.prepare` of the running pass returned.
        rewrites: reports of the rule sets applied by the running pass, in order.
        diagnostics: warnings of the running pass.
        running: name of the running pass; empty outside of one.
    """

    def __init__(
        self,
        *settings: object,
        progress: Callable[[int, int, str], None] | None = None,
        explain: bool = False,
        executor: Executor | None = None,
        store: Store | None = None,
    ) -> None:
        self._settings: dict[type, object] = {}
        for item in settings:
            if type(item) in self._settings:
                raise ValueError(f"two settings of type {type(item).__name__}")
            self._settings[type(item)] = item
        self._progress = progress
        self.explain = explain
        self.executor: Executor = executor if executor is not None else SERIAL
        self._store = store
        self.prepared: Any = None
        self.rewrites: list[RewriteReport] = []
        self.diagnostics: list[Diagnostic] = []
        self.running = ""

    @overload
    def get(self, kind: type[T]) -> T: ...
    @overload
    def get(self, kind: type[T], default: None) -> T | None: ...
    @overload
    def get(self, kind: type[T], default: T) -> T: ...

    def get(self, kind: type, default: Any = _MISSING) -> Any:
        """The setting of a type, or of a subtype; LadingError P321 when there is none and no default."""
        found = self._settings.get(kind)
        if found is None:
            found = next((item for item in self._settings.values() if isinstance(item, kind)), default)
        if found is _MISSING:
            who = f"pass {self.running}" if self.running else "this pass"
            raise LadingError("P321", f"{who} needs a {kind.__name__}, and this run has none")
        return found

    @property
    def store(self) -> Store:
        """Where work is kept between runs; LadingError Q445 when the environment names no size for it."""
        return self._store if self._store is not None else default_store()

    @property
    def target(self) -> Target:
        """What the graph is compiled for; the first runtime's own choice when the run names none."""
        found = self.get(Target, None)
        return found if found is not None else default_target()

    def rewrite(
        self, graph: Graph, rules: RuleSet, env: Any = None, start: Iterable[Node] | None = None
    ) -> dict[str, int]:
        """Apply rules until none fires; returns how often each fired. See `passes.rewrite.driver.rewrite`."""
        report = rewrite(graph, rules, env=env, explain=self.explain, start=start)
        self.rewrites.append(report)
        return report.counts()

    def warn(self, code: str, message: str, where: str = "", hint: str = "") -> None:
        """Record a warning for the report; the pass goes on."""
        self.diagnostics.append(Diagnostic(code, message, where, hint, "warning"))

    def note(self, code: str, message: str, where: str = "", hint: str = "") -> None:
        """Record for the report how something was understood, where nothing is amiss."""
        self.diagnostics.append(Diagnostic(code, message, where, hint, "note"))

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Say how far a long pass is; costs nothing when nobody listens."""
        if self._progress is not None:
            self._progress(done, total, what)
