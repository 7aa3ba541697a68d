"""Opening and writing graphs of any format, built in or from plugins: by suffix, or by the name of a frontend or
backend.

A *frontend* is any object with ``suffixes`` (such as ``(".edges",)``) and ``load(path) -> Graph``; a *backend* has
``suffixes`` and ``write(graph, path)``. Modules will do. Plugins list theirs in the tables ``frontends`` and
``backends`` of `passes.framework.registry.Plugin`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ir.base.diag import LadingError, suggest
from ir.graph.graph import Graph
from passes.framework.registry import BUILT_IN, Registry, default_registry

STANDARD = "-"
"""Standard input or output in place of a file."""
TEXT, ONNX, CHECKPOINT = "lading", "onnx", "checkpoint"


class Frontend(Protocol):
    """Reads one format."""

    suffixes: tuple[str, ...]

    def load(self, path: str) -> Graph:
        """The graph of a file or folder; LadingError for what is wrong with it."""


class Backend(Protocol):
    """Writes one format."""

    suffixes: tuple[str, ...]

    def write(self, graph: Graph, path: Path) -> None:
        """Write a graph; LadingError when that is not possible."""


class _Text:
    suffixes = (".lading",)

    @staticmethod
    def load(path: str) -> Graph:
        """Read the text form, ``-`` from standard input; relative paths in it are relative to its folder."""
        from ir.text.parser import parse

        if path == STANDARD:
            return parse(sys.stdin.read(), source="standard input")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise LadingError("U910", f"cannot read the graph: {reason}", path) from None
        return parse(text, base=Path(path).parent, source=path)

    @staticmethod
    def write(graph: Graph, path: Path) -> None:
        """Write the text form, large inline constants to a ``.bin`` file beside it."""
        from passes.framework.instruments import write_graph

        try:
            write_graph(graph, path)
        except ValueError as error:
            raise LadingError("P364", str(error), str(path), "write to another name") from None


class _Onnx:
    suffixes = (".onnx",)

    @staticmethod
    def load(path: str, free_inputs: bool = False) -> Graph:
        """Read an ONNX model; tensors that nothing produces are errors, or inputs when asked."""
        from frontends.onnx.load import load

        return load(path, free="input" if free_inputs else "error")

    @staticmethod
    def write(graph: Graph, path: Path) -> None:
        """Write an ONNX model, large constants to a ``.data`` file where one file cannot hold them."""
        from concurrent.futures import ThreadPoolExecutor

        from backends.onnx.write import write
        from ir.quant.weight import keep_all

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            keep_all((value.const for value in graph.consts.values() if value.const is not None), pool)
        write(graph, path)


class _Checkpoint:
    suffixes = ()

    @staticmethod
    def load(path: str) -> Graph:
        """Read a Hugging Face checkpoint: a folder or a hub name."""
        from frontends.checkpoint.load import load

        return load(path)


FRONTENDS: dict[str, Any] = {TEXT: _Text, ONNX: _Onnx, CHECKPOINT: _Checkpoint}
BACKENDS: dict[str, Any] = {TEXT: _Text, ONNX: _Onnx}


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

    def frontend(self, name: str) -> Frontend:
        """The frontend of a name; LadingError U911 when there is none, U912 when it is malformed."""
        return self._named("frontends", name, "load")

    def backend(self, name: str) -> Backend:
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
            found = known[name] = self.registry.imported(found, package)
        if not callable(getattr(found, method, None)) or not isinstance(getattr(found, "suffixes", None), tuple):
            message = f"the {what} {name!r} is malformed: it needs {method}() and a tuple of suffixes"
            raise LadingError("U912", message, package, f"update or uninstall {package}")
        return found

    def _of_suffix(self, table: str, suffix: str) -> list[str]:
        named = self.frontend if table == "frontends" else self.backend
        return [name for name in getattr(self, table) if suffix in named(name).suffixes]

    # ---- choosing ----

    def frontend_for(self, source: str) -> str:
        """Name of the frontend of a file, folder or hub name; LadingError U911 or U913 when that is not clear."""
        path = Path(source).expanduser()
        suffix = path.suffix.lower()
        if source == STANDARD:
            return TEXT
        found = self._of_suffix("frontends", suffix) if suffix else []
        if len(found) == 1 and not path.is_dir():
            return found[0]
        if len(found) > 1:
            raise self._several("frontends", source, found, "--from")
        if path.is_dir() or (not path.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))):
            return CHECKPOINT
        if not path.exists():
            raise LadingError("U910", "there is no such file or folder", source)
        hint = f"name the frontend with --from; there are {', '.join(sorted(self.frontends))}"
        raise LadingError("U911", f"no frontend reads files that end in {suffix!r}", source, hint)

    def backend_for(self, target: str) -> str:
        """Name of the backend of a file name; text for standard output; LadingError U911 or U913 otherwise."""
        if target == STANDARD:
            return TEXT
        suffix = Path(target).suffix.lower()
        found = self._of_suffix("backends", suffix) if suffix else []
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

    # ---- doing ----

    def read(self, source: str, name: str | None = None, *, free_inputs: bool = False) -> Graph:
        """The graph of a source: a path, ``-``, or a hub name.

        Args:
            source: where the graph is.
            name: the frontend; None chooses by suffix.
            free_inputs: let tensors of an ONNX model that nothing produces be inputs; no other format has such.
        """
        chosen = name or self.frontend_for(source)
        if source == STANDARD and chosen != TEXT:
            raise LadingError("U914", f"the frontend {chosen!r} cannot read standard input", hint="give a file")
        path = source if source == STANDARD else os.path.expanduser(source)
        graph = _Onnx.load(path, free_inputs) if chosen == ONNX else self.frontend(chosen).load(path)
        if not isinstance(graph, Graph):
            package = self.registry.package(chosen, "frontends")
            raise LadingError("U912", f"the frontend {chosen!r} did not return an ir.graph.graph.Graph", package)
        return graph

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
            backend.write(graph, Path(target).expanduser())
            return
        if chosen != TEXT:
            raise LadingError("U914", f"the backend {chosen!r} cannot write to standard output", hint="give -o FILE")
        from ir.text.printer import print_graph

        sys.stdout.write(print_graph(graph))


__all__ = ["BACKENDS", "CHECKPOINT", "FRONTENDS", "ONNX", "STANDARD", "TEXT", "Backend", "Formats", "Frontend"]
