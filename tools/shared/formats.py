"""The one way in and out for graphs of every format, built in or from plugins: by what a frontend recognises, by
suffix, or by name.

Rows of the tables ``frontends`` and ``backends`` are described in `frontends.frontend` and `backends.backend`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from backends.backend import Backend, Origin, emits
from frontends.frontend import FRONTENDS, STANDARD, Frontend
from ir.base.diag import LadingError, suggest
from ir.graph.graph import Graph
from passes.framework.registry import BUILT_IN, Registry, default_registry

TEXT, ONNX, CHECKPOINT = "lading", "onnx", "checkpoint"


class TextFile(Backend):
    """The text form of the IR."""

    suffixes = (".lading",)

    def write(self, graph: Graph, path: Path) -> None:
        """Write the text form, large inline constants to a ``.bin`` file beside it."""
        from passes.framework.instruments import write_graph

        try:
            write_graph(graph, path, durable=True)
        except ValueError as error:
            raise LadingError("P364", str(error), str(path), "write to another name") from None


BACKENDS: dict[str, Any] = {TEXT: TextFile()}
"""Backends that need no runtime."""


class Formats:
    """The frontends and backends that exist: built-in ones and those of a registry.

    Raises:
        LadingError: P331 a plugin's name is a built-in one.
    """

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry or default_registry()
        self.frontends = self._merged("frontends", FRONTENDS)
        self.backends = self._merged("backends", BACKENDS)

    def _merged(self, table: str, built_in: Mapping[str, Any]) -> dict[str, Any]:
        added = getattr(self.registry, table)
        for name in added:
            if name in built_in:
                package = self.registry.package(name, table)
                message = f"the {table.rstrip('s')} {name!r} is claimed by {BUILT_IN} and by {package}"
                raise LadingError("P331", message, package, f"rename it in {package}")
        return {**built_in, **added}

    def frontend(self, name: str) -> Any:
        """The frontend of a name; LadingError U911 when there is none, U912 when it is malformed."""
        return self._named("frontends", name, "load")

    def backend(self, name: str) -> Any:
        """The backend of a name; LadingError U911 when there is none, U912 when it is malformed."""
        return self._named("backends", name, "write")

    def _named(self, table: str, name: str, method: str) -> Any:
        known = getattr(self, table)
        what = table.rstrip("s")
        if name not in known:
            hint = suggest(name, list(known)) or f"there are {', '.join(sorted(known))}"
            raise LadingError("U911", f"there is no {what} {name!r}", hint=hint)
        found = known[name]
        if name not in getattr(self.registry, table):
            return found
        package = self.registry.package(name, table)
        if isinstance(found, str):
            found = self.registry.imported(found, package)
            found = known[name] = found() if isinstance(found, type) else found
        if not callable(getattr(found, method, None)) or not isinstance(getattr(found, "suffixes", None), tuple):
            message = f"the {what} {name!r} is malformed: it needs {method}() and a tuple of suffixes"
            raise LadingError("U912", message, package, f"update or uninstall {package}")
        return found

    # ---- choosing ----

    def frontend_for(self, source: str, otherwise: str = "") -> str:
        """Name of the frontend of a file, folder or hub name.

        A frontend of a plugin comes before that of checkpoints, which takes every folder.

        Args:
            source: a path, ``-``, or a hub name.
            otherwise: the frontend of what no frontend recognises.

        Raises:
            LadingError: U910, U911 or U913 when that is not clear.
        """
        found = [name for name in self.frontends if _recognises(self.frontend(name), source)]
        found = [name for name in found if name != CHECKPOINT] or found
        if len(found) == 1:
            return found[0]
        if found:
            raise self._several("frontends", source, found, "--from")
        if otherwise:
            return otherwise
        path = Path(os.path.expanduser(source))
        if not path.exists():
            raise LadingError("U910", "there is no such file or folder", source)
        hint = f"name the frontend with --from; there are {', '.join(sorted(self.frontends))}"
        raise LadingError("U911", f"no frontend reads files that end in {path.suffix.lower()!r}", source, hint)

    def backend_for(self, target: str) -> str:
        """Name of the backend of a file name; text for standard output; LadingError U911 or U913 otherwise."""
        if target == STANDARD:
            return TEXT
        suffix = Path(target).suffix.lower()
        found = [name for name in self.backends if suffix and suffix in self.backend(name).suffixes]
        if not found:
            hint = f"name the backend with --to; there are {', '.join(sorted(self.backends))}"
            raise LadingError("U911", f"no backend writes files that end in {suffix!r}", target, hint)
        if len(found) > 1:
            raise self._several("backends", target, found, "--to")
        return found[0]

    def _several(self, table: str, where: str, names: Iterable[str], option: str) -> LadingError:
        plugins = getattr(self.registry, table)
        owners = [f"{name} ({self.registry.package(name, table) if name in plugins else BUILT_IN})" for name in names]
        message = f"several {table} take {Path(where).suffix!r} files: {', '.join(owners)}"
        return LadingError("U913", message, where, f"choose with {option}")

    # ---- what compile emits to ----

    def emitter(self, name: str) -> Backend:
        """The backend of a name that ``compile`` can emit to; LadingError U911 or U912 when there is none."""
        found = self.backend(name)
        if emits(found):
            return found
        hint = f"compile emits to {', '.join(self.emitters())}; other formats are written by lading opt"
        raise LadingError("U911", f"compile cannot emit to the backend {name!r}", hint=hint)

    def emitters(self) -> list[str]:
        """Names of the backends that ``compile`` can emit to."""
        return [name for name in sorted(self.backends) if emits(self.backend(name))]

    def emitter_of_frontend(self, frontend: str) -> str | None:
        """The backend that models of a frontend are compiled for; None where the model itself decides."""
        return self._first(lambda backend: frontend in backend.frontends)

    def emitter_of(self, graph: Graph) -> str:
        """The backend that a graph is compiled for; LadingError U911 when no backend takes it."""
        found = self._first(lambda backend: backend.accepts(graph))
        if found is None:
            hint = f"choose with --to; there are {', '.join(self.emitters())}"
            raise LadingError("U911", "no backend takes a model like this one", graph.name, hint)
        return found

    def _first(self, fits: Callable[[Backend], bool]) -> str | None:
        return next((name for name in self.emitters() if fits(self.backend(name))), None)

    # ---- doing ----

    def locate(self, source: str, name: str | None = None, **options: Any) -> Origin:
        """Where the model of a source lies, brought to this machine where it is not there yet.

        Args:
            source: a path or a hub name.
            name: the frontend; None chooses by what recognises it, and checkpoints are looked for in what nothing does.
            options: as in `read`.
        """
        chosen = name or self.frontend_for(source, otherwise=CHECKPOINT)
        frontend = self.frontend(chosen)
        path = frontend.locate(source, **self._options(chosen, options)) if hasattr(frontend, "locate") else None
        path = path or Path(os.path.expanduser(source))
        usual = Frontend()
        title = getattr(frontend, "title", usual.title)(path)
        tokenizer = getattr(frontend, "tokenizer", usual.tokenizer)(path)
        known = os.path.exists(os.path.expanduser(source))
        return Origin(source, chosen, path, title if known else source, tokenizer)

    def read(self, source: str, name: str | None = None, *, otherwise: str = "", **options: Any) -> Graph:
        """The graph of a source: a path, ``-``, or a hub name.

        Args:
            source: where the graph is.
            name: the frontend; None chooses by what recognises the source.
            otherwise: the frontend of what none recognises.
            options: what some frontends understand; others have nothing that it could change. ``free``: what becomes of
                tensors that an ONNX model reads but never makes, ``input`` or ``error``; ``base``: folder of its
                external data; ``revision``: state of a hub repository.
        """
        chosen = name or self.frontend_for(source, otherwise)
        if source == STANDARD and chosen != TEXT:
            raise LadingError("U914", f"the frontend {chosen!r} cannot read standard input", hint="give a file")
        path = source if source == STANDARD else os.path.expanduser(source)
        graph = self.frontend(chosen).load(path, **self._options(chosen, options))
        if not isinstance(graph, Graph):
            package = self.registry.package(chosen, "frontends")
            raise LadingError("U912", f"the frontend {chosen!r} did not return an ir.graph.graph.Graph", package)
        return graph

    def _options(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those options that a frontend understands."""
        known = getattr(self.frontend(name), "options", ())
        return {key: value for key, value in options.items() if key in known}

    def write(self, graph: Graph, target: str, name: str | None = None) -> None:
        """Write a graph to a path, or as text to ``-``.

        Args:
            graph: the graph.
            target: where to.
            name: the backend; None chooses by suffix.
        """
        chosen = name or self.backend_for(target)
        backend = self.backend(chosen)
        if target != STANDARD:
            if getattr(backend, "stores_weights", False):
                _keep(graph)
            backend.write(graph, Path(os.path.expanduser(target)))
            return
        if chosen != TEXT:
            raise LadingError("U914", f"the backend {chosen!r} cannot write to standard output", hint="give -o FILE")
        from ir.text.printer import print_graph

        sys.stdout.write(print_graph(graph))


def _keep(graph: Graph) -> None:
    """Make what takes long to make of a graph's constants, in parallel."""
    from concurrent.futures import ThreadPoolExecutor

    from ir.quant.weight import keep_all

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        keep_all((value.const for value in graph.consts.values() if value.const is not None), pool)


def _recognises(frontend: Any, source: str) -> bool:
    own = getattr(frontend, "recognises", None)
    if own is not None:
        return bool(own(source))
    path = Path(os.path.expanduser(source))
    return path.suffix.lower() in frontend.suffixes and not path.is_dir()


__all__ = ["BACKENDS", "CHECKPOINT", "FRONTENDS", "ONNX", "STANDARD", "TEXT", "Backend", "Formats", "Frontend"]
