"""MNN as something to compile for: one ``.mnn`` file that an application loads as a module.

Graphs that end in our own operators (`legalize-mnn`) are written as they are. All others were made legal for the converter
of MNN's wheels (`legalize-module`) and go through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from backends.backend import Backend, Compilation, Figures, Made, Order
from backends.mnn.target.releases import MnnTarget, target
from ir.base.diag import LadingError
from ir.facts.model_card import ModelCard

if TYPE_CHECKING:
    import backends.contract as c
    from backends.mnn.modules.way import Way
    from ir.graph.graph import Graph
    from passes.framework.pipeline import Pipeline
    from passes.framework.registry import Registry


class MnnModule(Backend):
    """A folder with one MNN model that an application loads as a module."""

    runtime = "MNN"
    passes = "mnn"
    options = frozenset({"inputs", "external_data"})

    def accepts(self, graph: Graph) -> bool:
        """Every graph that is no language model."""
        from passes.inputs.language_model import looks_like_one

        return not looks_like_one(graph)

    def pipeline(self, frontend: str) -> str:
        """ONNX graphs go through the converter; what is read into our own operators is written by us."""
        return "mnn-module" if frontend == "onnx" else self.passes

    def completed(self, pipeline: Pipeline, registry: Registry) -> Pipeline:
        """What ends in pairs of QuantizeLinear and DequantizeLinear goes through the converter, too."""
        from passes.framework.load import load

        names = {one.name for one in pipeline.passes()}
        if "insert-static-qdq" not in names or names & {"legalize-module", "legalize-mnn"}:
            return pipeline
        return pipeline + load("mnn-module", registry)

    def target(self, text: str | None) -> MnnTarget:
        """``portable``, a release, or clauses such as ``>=3.4,<3.6``."""
        return target() if text is None else target(text)

    def begin(self, order: Order) -> Compilation:
        """Begin to compile; LadingError U906 when the result is to be run and MNN is not installed."""
        from backends.mnn.target.environments import installed_version

        if order.verify != "none" and installed_version() is None:
            hint = "pip install MNN, or --verify none"
            raise LadingError("U906", "verification needs the MNN runtime, which is not installed", hint=hint)
        return ModuleCompilation(order)


class ModuleCompilation(Compilation):
    """One module in the making."""

    native = ("onnxruntime",)

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        assert isinstance(order.target, MnnTarget)
        self.target = order.target
        self.way: Way | None = None
        self._weights = 0
        self._outputs: tuple[c.Output, ...] = ()
        self._others: Mapping[str, int] = {}

    def opened(self, graph: Graph) -> None:
        """Count the weights of the model as it was read."""
        constants = (value for one in graph.graphs() for value in one.consts.values())
        self._weights = sum(value.tensor.type.size or 0 for value in constants if value.dtype.is_float)

    def check(self, graph: Graph, pipeline: str) -> None:
        """The pipeline must end in operators of MNN, or in ONNX's that its converter gets right.

        Raises:
            LadingError: U905 it does not.
        """
        from backends.mnn.lower.stage import problems
        from backends.mnn.modules.converted import Converted
        from backends.mnn.modules.legalize import unsettled
        from backends.mnn.modules.written import Written
        from passes.framework.load import load

        usual = MnnModule().pipeline(self.order.origin.frontend)
        special = "" if pipeline == str(load(usual)) else pipeline
        if any(node.domain == "mnn" for node in graph.walk()):
            found = problems(graph)
            self.way = Written(self.order, self.target, special)
        else:
            found = unsettled(graph, self.target.versions)
            self.way = Converted(self.order, self.target, special)
        if found:
            first = found[0]
            message = f"this pipeline does not end in a graph that MNN can hold: {first.message}"
            hint = "end it with legalize-module, as the pipeline 'mnn-module' does, or with legalize-mnn"
            raise LadingError("U905", message, f"pipeline {pipeline}\n{first.where}", hint)

    def _way(self) -> Way:
        assert self.way is not None, "nothing was checked"
        return self.way

    def emit(self, graph: Graph) -> None:
        """Write the model and its weights."""
        self.order.say("writing the model")
        self.emission = self._way().emit(graph, self.folder)
        self.order.lap("write")

    def verify(self, graph: Graph, original: Graph) -> None:
        """Run the file on MNN, and compare with what it stores and with the original."""
        self.order.say("running on MNN")
        way = self._way()
        try:
            way.verify(graph, original, self.folder)
        finally:
            self.verification = tuple(way.runs) or None
            self.warnings += way.warnings
        self.order.lap("verify")

    def contract(self, graph: Graph, made: Made) -> c.Contract:
        """What the file promises."""
        import backends.contract as c
        from backends import described

        card = ModelCard.of(graph)
        model, signature = described.model(card), _as_held(described.signature(graph))
        if model.parameters is None and self._weights:
            model = replace(model, parameters=self._weights)
        self._outputs = signature.outputs
        self._others = next((counts for name, counts in made.passes if name == "legalize-module"), {})
        return c.Contract(
            compiler=described.compiler(),
            target=c.Target(profile=self.target.name, releases=self.target.versions),
            model=model,
            sources=described.sources(card.sources),
            config_digest=card.config_digest,
            signature=signature,
            files=tuple(c.FileEntry.of(self.folder, name, role) for name, role in self.emission.items()),
            weights=self._way().weights(graph),
            pipeline=described.pipeline(made),
            calibration=described.calibration(graph),
            runtime=c.Runtime(requires=c.Requirements(min_release=self.target.versions[0])),
            verified=tuple(
                c.Verification(
                    release=run.release, platform=run.platform, settings=None, reference=run.reference,
                    prompt_tokens=None, max_abs_error=run.max_abs, kl=None, top1=None,
                )
                for run in self._way().runs
            ),
            warnings=described.notices(made),
            verdict=described.verdict(made),
        )  # fmt: skip

    def judged(self) -> str | None:
        """The releases that ran, and what was lost there."""
        runs = [run for run in self._way().runs if run.reference == "float"]
        if not runs:
            return None
        releases = list(dict.fromkeys(run.release for run in runs))
        named = releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"
        return f"on MNN {named}: outputs off by {max(run.error for run in runs):.1e} of their size"

    def lines(self) -> Sequence[tuple[str, str]]:
        """What the module gives, and which operators were said in terms of others."""
        outputs = "\n".join(f"{item.name} {item.dtype}{item.shapes[0]}" for item in self._outputs)
        counts = [f"{op} {count}" for op, count in sorted(self._others.items()) if count]
        return [("outputs", outputs), *([("decomposed", ", ".join(counts))] if counts else [])]

    def figures(self) -> Figures | None:
        """The measurements."""
        runs = self._way().runs if self.way is not None else ()
        if not runs:
            return None
        whole = {"decoded weights": "its weights", "float": "original"}
        rows = [(run.release, whole[run.reference], str(run.feeds), f"{run.error:.1e}") for run in runs]
        return Figures("run on MNN", ("release", "against", "inputs", "relative error"), rows, ("release", "against"))


def _as_held(signature: c.Signature) -> c.Signature:
    """The signature with the element types in which MNN's tensors hold those of the graph: one of floats, one of integers."""
    from ir.base.types import DTYPES, F32, I32

    def known(name: str) -> str:
        return (F32 if DTYPES[name].is_float else I32).name

    inputs = tuple(
        replace(
            port, dtype=known(port.dtype), default=int(port.default) if isinstance(port.default, bool) else port.default
        )
        for port in signature.inputs
    )
    outputs = tuple(replace(port, dtype=known(port.dtype)) for port in signature.outputs)
    return replace(signature, inputs=inputs, outputs=outputs)


__all__ = ["MnnModule", "ModuleCompilation"]
