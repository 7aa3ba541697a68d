"""Modules by the converter of MNN's wheel, verified against the model that they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import backends.contract as c
from backends.bars import ERROR_BARS
from backends.mnn.modules.child import Converter
from backends.mnn.modules.edit.edited import Edited, warnings_of
from backends.mnn.modules.emit import emit, expected_seconds
from backends.mnn.modules.verify import Subject, verify
from backends.mnn.modules.way import MODEL, WEIGHTS, Way
from backends.mnn.target.environments import module_packages
from backends.mnn.target.releases import target
from ir.base.diag import LadingError
from ir.evaluate.feed_sets import COUNTS
from ir.facts.activation_ranges import ActivationRanges
from ir.graph.graph import Graph

LARGE = 3 << 29
"""Bytes of constants above which weights lie in a file of their own; one file of MNN holds 2 GiB."""

LONG = 10.0
"""Seconds of a conversion from which on they are told beforehand."""

INTEGER_BAR = 4
"""Width of weights whose bar is that of outputs where tensors are integers of 8 bits."""


class Converted(Way):
    """A module that the converter writes.

    It is the converter of the oldest release of the target that is here: later runtimes read what it writes.

    Attributes:
        edited: what was stored in fewer bits.
        inside: weights lie in the model, not beside it.
    """

    edited: Edited
    inside: bool

    def emit(self, graph: Graph, folder: Path) -> Mapping[str, str]:
        """See `Way.emit`; LadingError U906 when MNN is not installed, and what `backends.mnn.modules.emit.emit` raises."""
        expected = expected_seconds(graph)
        if expected > LONG:
            self.order.say(f"converting; MNN's converter takes about {expected:,.0f} s for so many operators")
        self.inside = not self.order.options.get("external_data") and _floats(graph) <= LARGE
        self.edited = self._convert(graph, folder / MODEL) or Edited()
        self.warnings += warnings_of(self.edited)
        return {MODEL: "model"} if self.inside else {MODEL: "model", WEIGHTS: "weights"}

    def weights(self, graph: Graph) -> tuple[c.WeightEntry, ...]:
        """See `Way.weights`."""
        return tuple(
            c.WeightEntry(
                name=place.name, file=(MODEL, WEIGHTS)[place.file], offset=place.offset, bytes=place.bytes,
                shape=place.shape,
                storage=c.Storage.of(place.storage, f"mnn-{'dense-codes' if place.storage.is_integer else 'f16'}"),
            )
            for place in self.edited.places
        )  # fmt: skip

    def _convert(self, graph: Graph, out: Path) -> Edited | None:
        found = module_packages(self.target.versions)
        if not found:
            hint = "pip install MNN, or --to onnx"
            raise LadingError("U906", "ONNX graphs are converted by the MNN wheel, which is not installed", hint=hint)
        with Converter(next(iter(found.values()))) as converter:
            return emit(graph, out, converter, inside=self.inside)

    def _bar(self) -> float | None:
        """How far off the original outputs may be; None where all numbers are as they were."""
        if self.edited.integer:
            return ERROR_BARS[INTEGER_BAR]
        return ERROR_BARS[min(self.edited.widths)] if self.edited.widths else None

    def _reducing(self, graph: Graph) -> list[str]:
        """The command that finds the smallest part of the model that fails; none where that takes calibration data, which
        smaller graphs have not."""
        if graph.fact(ActivationRanges) is not None:
            return []
        inputs = self.order.options.get("inputs")
        words = ["lading", "reduce", self.order.origin.model, "--to", "mnn"]
        words += [] if self.target.name == target().name else ["--target", self.target.name]
        words += ["--passes", self.pipeline] if self.pipeline else []
        return words + ([] if inputs is None else ["--inputs", str(inputs)])

    def verify(self, graph: Graph, original: Graph, folder: Path) -> None:
        """See `Way.verify`."""
        origin, level = self.order.origin, self.order.verify
        assert level != "none"
        subject = Subject(
            graph,
            original,
            folder / MODEL,
            source=origin.path if origin.frontend == "onnx" else None,
            command=self._reducing(graph),
            convert=self._convert,
        )
        given = self.order.inputs(original, COUNTS[level])
        found = verify(subject, versions=self.target.versions, level=level, given=given, bar=self._bar())
        self.runs = found.measurements
        self.warnings += found.warnings
        found.require()


def _floats(graph: Graph) -> int:
    return sum(value.tensor.nbytes for one in graph.graphs() for value in one.consts.values())


__all__ = ["Converted"]
