"""The failure that compile refuses a graph, which needs no shell command to show itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ir.base.diag import Diagnostic, LadingError
from ir.base.scratch import scratch_folder

if TYPE_CHECKING:
    from ir.evaluate.reference import Reference
    from ir.graph.graph import Graph
    from tools.compile.job import Request


class Refusal:
    """That compile refuses a graph as it refuses the whole one.

    Attributes:
        kind: the code of that refusal, and what is refused where that is the same for graphs of other sizes.
    """

    def __init__(self, source: str, graph: Graph, request: Request) -> None:
        """Compile the whole graph.

        Args:
            source: where the graph was read from.
            graph: the graph.
            request: how to compile it; its model and folder are put in. Its inputs are those of the whole graph: where a
                smaller one begins further on, it is given what the whole one computes there.

        Raises:
            LadingError: U964 compile does not refuse it, U962 and U963 for the inputs.
        """
        from tools.compile.job import pipeline_of
        from tools.shared.formats import Formats

        formats = Formats()
        frontend = formats.frontend_for(source)
        backend = formats.emitter(request.to or "")
        # Smaller graphs are texts; they go the way that the model goes.
        self._request = replace(request, pipeline=str(pipeline_of(request, formats, backend, frontend)), inputs=None)
        self._sets = _given(request, graph)
        self._graph = graph
        self._path = Path(source) if frontend == "onnx" else None
        self._reference: Reference | None = None
        found = self._refusals(source, {value.name for value in graph.inputs})
        if not found:
            raise LadingError("U964", f"compile --to {request.to} does not refuse the model", source)
        self.kind = found[0]

    def holds(self, path: Path, left: float) -> bool:
        """Compile the graph of a file; the seconds left are not kept to, since every child has limits of its own."""
        from tools.shared.formats import Formats

        try:
            names = {value.name for value in Formats().read(str(path)).inputs} if self._sets else set()
            return self.kind in self._refusals(str(path), names)
        except Exception:  # Another failure of the compiler is not this one; a name may be one that the whole lacks.
            return False

    def _refusals(self, model: str, inputs: set[str]) -> list[tuple[str, str]]:
        """The kinds of what is wrong with a model; empty when it is compiled."""
        from tools.compile.job import compile_model

        with scratch_folder() as folder:
            made = replace(
                self._request, model=model, out=folder / "out", inputs=self._inputs(folder / "inputs", inputs)
            )
            try:
                compile_model(made)
            except LadingError as error:
                return [_kind(item) for item in error.diagnostics if item.severity == "error"]
        return []

    def _inputs(self, folder: Path, names: set[str]) -> Path | None:
        """A folder of arrays for inputs of these names; None where inputs are made up. KeyError for an unknown name."""
        if not self._sets:
            return None
        folder.mkdir()
        for number, feeds in enumerate(self._sets):
            np.savez(folder / f"{number}.npz", **self._values(feeds, names))
        return folder

    def _values(self, feeds: Mapping[str, np.ndarray], names: set[str]) -> dict[str, np.ndarray]:
        from ir.evaluate.reference import open_reference

        inner = sorted(names - set(feeds))
        for name in inner:
            self._graph.value(name)
        if not inner:
            return {name: feeds[name] for name in names}
        if self._reference is None:
            self._reference = open_reference(self._path, self._graph)
        return {**{name: feeds[name] for name in names & set(feeds)}, **self._reference.run(feeds, inner)}


def _kind(item: Diagnostic) -> tuple[str, str]:
    """The code; with it the message, unless that tells of numbers that were measured."""
    return item.code, "" if item.code.startswith("V") else item.message


def _given(request: Request, graph: Graph) -> list[Mapping[str, np.ndarray]]:
    if request.inputs is None:
        return []
    from ir.evaluate.given_feeds import read_inputs

    return list(read_inputs(request.inputs, graph).values())


__all__ = ["Refusal"]
