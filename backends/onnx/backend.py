"""ONNX as something to compile for: a model with its weights stored as the plan says, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backends.backend import Backend, Compilation, Figures, Made, Order
from backends.onnx.target import OnnxTarget, target
from ir.base.diag import LadingError

if TYPE_CHECKING:
    import numpy as np

    from backends.contract import Contract
    from backends.onnx.verify import Verification
    from backends.verdict import Reading
    from frontends.onnx.original import AsRead
    from ir.graph.graph import Graph

MODEL = "model.onnx"
DATA = MODEL + ".data"
"""Where the weights are when they are not in the model itself."""

LARGE = 64 << 20
"""Bytes of constants from which they get a file of their own."""


class OnnxBackend(Backend):
    """ONNX files, and folders with an ONNX model and its contract."""

    suffixes = (".onnx",)
    runtime = "onnxruntime"
    passes = "onnx"
    options = frozenset({"inputs", "kl_bar", "opset", "external_data"})
    stores_weights = True

    def write(self, graph: Graph, path: Path) -> None:
        """Write an ONNX model, large constants to a ``.data`` file where one file cannot hold them."""
        from backends.onnx.write import write

        write(graph, path)

    def accepts(self, graph: Graph) -> bool:
        """Every graph can be written."""
        return True

    def target(self, text: str | None) -> OnnxTarget:
        """The installed onnxruntime."""
        return target(text)

    def begin(self, order: Order) -> Compilation:
        """Begin to compile."""
        return OnnxCompilation(order)


class OnnxCompilation(Compilation):
    """One ONNX model in the making; `emission` holds the role of each file by name."""

    native = ("onnxruntime",)
    verification: Verification | None

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        self._as_read: AsRead | None = None

    def opened(self, graph: Graph) -> None:
        """Note what a language model takes: made-up numbers are no masks and histories."""
        from passes.inputs.language_model import looks_like_one

        if self.order.origin.frontend == "onnx" and self.order.verify != "none" and looks_like_one(graph):
            from frontends.onnx.original import as_read

            self._as_read = as_read(self.order.origin.path, graph)

    def check(self, graph: Graph, pipeline: str) -> None:
        """The graph must still take the inputs of its source; LadingError B751 when it does not."""
        from ir.facts.inputs import DynamicInputs

        fact = graph.fact(DynamicInputs)
        if fact is not None and fact.signature and self.order.origin.frontend != "mnn":
            message = "the pipeline prepared the graph for a runtime that feeds it in its own way"
            raise LadingError("B751", message, f"pipeline {pipeline}", "use --passes onnx, onnx-int4 or onnx-fp32")

    def emit(self, graph: Graph) -> None:
        """Write the model; LadingError U958 when an operator has no form in the opset that is asked for."""
        from backends.onnx.write import write
        from ir.onnx.export import all_constants
        from ir.quant.weight import keep_all

        self._restate(graph)
        self.order.say("writing the model")
        constants = [value for value in all_constants(graph) if value.const is not None]
        total = sum(value.const.type.nbytes or 0 for value in constants if value.const is not None)
        keep_all((value.const for value in constants if value.const is not None), self.order.pool)
        write(
            graph, self.folder / MODEL, external=0 if total > LARGE or self.order.options.get("external_data") else None
        )
        self.emission = {MODEL: "model"}
        if (self.folder / DATA).is_file():
            self.emission[DATA] = "weights"
        self.order.weights(len(constants), len(constants))
        self.order.lap("write")

    def _restate(self, graph: Graph) -> None:
        """Bring the graph to the opset that is asked for."""
        from ir.ops.opset import restate, told

        opset: int | None = self.order.options.get("opset")
        blockers = restate(graph, opset) if opset is not None else []
        if blockers:
            newer = (opset or 0) < graph.opsets.get("", 0)
            hint = "ask for a later opset, or leave --opset out" if newer else "leave --opset out"
            message = f"opset {opset} has no form of {told(blockers)} as this model uses them"
            raise LadingError("U958", message, f"the graph is of opset {graph.opsets.get('')}", hint)

    def verify(self, graph: Graph, original: Graph) -> None:
        """Run the file, and compare with what the graph means and with the original."""
        from backends.onnx.verify import FEEDS, verify

        origin = self.order.origin
        self.order.say("running on onnxruntime")
        self.verification = verify(
            self.folder / MODEL,
            graph,
            original,
            source=origin.path if origin.frontend == "onnx" else None,
            feeds=FEEDS[self.order.verify],
            max_kl=self.order.options.get("kl_bar"),
            checkpoint=self._checkpoint(),
            given=self._given(original),
        )
        self.verification.require()
        self.warnings += self.verification.warnings
        self.order.lap("verify")

    def _given(self, original: Graph) -> Sequence[Mapping[str, np.ndarray]] | None:
        """The inputs that are named or were measured with, else tokens for a language model, else None for made-up ones."""
        from backends.onnx.verify import FEEDS

        found = self.order.inputs(original, FEEDS[self.order.verify])
        return list(found.values()) if found is not None else self._tokens(original)

    def _tokens(self, original: Graph) -> Sequence[Mapping[str, np.ndarray]] | None:
        """What a language model is fed, by what its inputs were found to hold; None for other graphs, and for a model of
        which nothing is found out."""
        if self._as_read is None:
            return None
        from backends.onnx.verify import FEEDS, token_feeds
        from ir.graph.copy import copied
        from passes.framework.context import PassContext
        from passes.framework.load import load
        from passes.framework.manager import PassManager

        raised = copied(original)
        try:
            PassManager(load("lift-decoder")).run(raised, PassContext(executor=self.order.pool))
        except LadingError:
            return None
        return token_feeds(self._as_read.reference(raised), raised, FEEDS[self.order.verify])

    def _checkpoint(self) -> Path | None:
        """The folder that the original implementation is run on."""
        origin = self.order.origin
        whole = origin.frontend == "torch" or (origin.frontend == "checkpoint" and self.order.verify == "full")
        return origin.folder if whole else None

    def judged(self) -> str | None:
        """The release that ran, and what was lost there."""
        if self.verification is None:
            return None
        return f"on onnxruntime {self.verification.measurements[0].release}: {self.verification.loss}"

    def reading(self) -> Reading:
        """Whether the checkpoint was read right."""
        from backends.verdict import Reading

        return self.verification.reading if self.verification is not None else Reading()

    def contract(self, graph: Graph, made: Made) -> Contract:
        """What the model promises."""
        from backends.onnx.contract import make_contract

        assert isinstance(self.order.target, OnnxTarget)
        found = self.verification.measurements if self.verification is not None else ()
        return make_contract(graph, self.folder, self.emission, self.order.target, made, found)

    def figures(self) -> Figures | None:
        """The measurements."""
        from backends.onnx.verify import figures

        return figures(self.verification.measurements) if self.verification is not None else None


__all__ = ["DATA", "MODEL", "OnnxBackend", "OnnxCompilation"]
