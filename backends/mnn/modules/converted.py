"""Modules by the converter of MNN's wheel, verified against the model that they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.mnn.modules.child import Converter
from backends.mnn.modules.emit import emit
from backends.mnn.modules.verify import Subject, verify
from backends.mnn.modules.way import MODEL, Way
from backends.mnn.target.environments import module_packages
from ir.base.diag import LadingError
from ir.evaluate.given_feeds import read_inputs
from ir.graph.graph import Graph


class Converted(Way):
    """A module that the converter writes.

    It is the converter of the oldest release of the target that is here: later runtimes read what it writes.
    """

    def emit(self, graph: Graph, folder: Path) -> Mapping[str, str]:
        """See `Way.emit`; LadingError U906 when MNN is not installed, and what `backends.mnn.modules.emit.emit` raises."""
        self._convert(graph, folder / MODEL)
        return {MODEL: "model"}

    def _convert(self, graph: Graph, out: Path) -> None:
        found = module_packages(self.target.versions)
        if not found:
            hint = "pip install MNN, or --to onnx"
            raise LadingError("U906", "ONNX graphs are converted by the MNN wheel, which is not installed", hint=hint)
        with Converter(next(iter(found.values()))) as converter:
            emit(graph, out, converter)

    def verify(self, graph: Graph, original: Graph, folder: Path) -> None:
        """See `Way.verify`."""
        origin, inputs, level = self.order.origin, self.order.options.get("inputs"), self.order.verify
        assert level != "none"
        subject = Subject(
            graph,
            original,
            folder / MODEL,
            source=origin.path if origin.frontend == "onnx" else None,
            convert=self._convert,
        )
        given = None if inputs is None else read_inputs(inputs, original)
        found = verify(subject, versions=self.target.versions, level=level, given=given)
        self.runs = found.measurements
        self.warnings += found.warnings
        found.require()


__all__ = ["Converted"]
