"""MNN as something to compile for: one ``.mnn`` file that an application loads as a module.

It takes graphs whose every operator `legalize-mnn` has a form for, in whatever shape their inputs are.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

import backends.contract as c
from backends import described
from backends.backend import Backend, Compilation, Figures, Made, Order
from backends.mnn.target.releases import MnnTarget, target
from ir.base.diag import LadingError
from ir.facts.model_card import ModelCard

if TYPE_CHECKING:
    from backends.mnn.write.weight_layout import Layout
    from ir.graph.graph import Graph

MODEL = "model.mnn"
WEIGHTS = MODEL + ".weight"
"""Where modules look for the weights of a model."""

BAR = 1e-3
"""How far outputs may be off what the stored weights give, relative to the largest."""

ROUNDS = {"quick": 2, "full": 8}
"""Random inputs that are run."""

TIMEOUT_S = 300


@dataclass(frozen=True)
class Gap:
    """How far outputs are from a reference: the largest difference, as it is and relative to the largest number."""

    absolute: float = 0.0
    relative: float = 0.0

    def joined(self, wanted: Iterable[np.ndarray], got: Iterable[np.ndarray]) -> Gap:
        """With what one more run shows; infinite where sizes differ or something is not a number."""
        found = self
        for one, other in zip(wanted, got, strict=True):
            if one.size != other.size:
                return Gap(float("inf"), float("inf"))
            gap = float(np.abs(one.reshape(-1).astype(np.float64) - other.reshape(-1)).max(initial=0.0))
            gap = gap if np.isfinite(gap) else float("inf")
            size = max(float(np.abs(one).max(initial=0.0)), 1e-6)
            found = Gap(max(found.absolute, gap), max(found.relative, gap / size))
        return found


class MnnModule(Backend):
    """A folder with one MNN model that an application loads as a module."""

    runtime = "MNN"
    passes = "mnn"
    options = frozenset({"inputs"})

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
    """One module in the making; `verification` is how far it is from its weights and from the original."""

    native = ("onnxruntime",)
    emission: Layout
    verification: tuple[Gap, Gap] | None

    def check(self, graph: Graph, pipeline: str) -> None:
        """The pipeline must end in operators of MNN; LadingError U905 when it does not."""
        from backends.mnn.lower.stage import problems

        found = problems(graph)
        if found:
            first = found[0]
            message = f"this pipeline does not end in a graph that MNN can hold: {first.message}"
            hint = "end it with legalize-mnn, as the pipeline 'mnn' does"
            raise LadingError("U905", message, f"pipeline {pipeline}\n{first.where}", hint)

    def emit(self, graph: Graph) -> None:
        """Write the model and its weights."""
        from backends.mnn.lower.fit import check_storage, fit
        from backends.mnn.run.native import json_to_mnn
        from backends.mnn.write.net_json import build_net
        from backends.mnn.write.weight_file import fill, weight_jobs
        from backends.mnn.write.weight_layout import plan_layout

        assert isinstance(self.order.target, MnnTarget)
        self.order.say("writing the model")
        fit(graph, self.order.target)
        self.emission = layout = plan_layout(graph)
        check_storage(layout, self.order.target)
        json_to_mnn(build_net(graph, layout), self.folder / MODEL)
        weights = self.folder / WEIGHTS
        fill(weights, layout.nbytes, weight_jobs(layout, weights), self.order.pool)
        self.order.lap("write")

    def verify(self, graph: Graph, original: Graph) -> None:
        """Run the file on the installed MNN, and compare with what it stores and with the original."""
        from backends.bars import ERROR_BARS
        from ir.evaluate.evaluator import evaluate
        from ir.evaluate.random_feeds import sample_feeds
        from ir.facts.precision import PrecisionPlan

        self.order.say("running on MNN")
        exact = whole = Gap()
        for seed in range(ROUNDS[self.order.verify]):
            feeds = sample_feeds(original, seed=seed)
            got = self._run(graph, feeds)
            exact = exact.joined(evaluate(graph, feeds).values(), got)
            whole = whole.joined(evaluate(original, feeds).values(), got)
        plan = graph.required_fact(PrecisionPlan)
        bar = ERROR_BARS[min((item.bits for item in plan.storage.values()), default=32)]
        for gap, limit, what in ((exact, BAR, "its stored weights"), (whole, bar, "the original")):
            if not gap.relative <= limit:
                message = (
                    f"outputs are off by {gap.relative:.3g} of the largest from {what}, and {limit:.3g} is allowed"
                )
                raise LadingError("V702", message, hint="nothing was written")
        self.verification = (exact, whole)
        self.order.lap("verify")

    def _run(self, graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        from backends.mnn.run.native import RUNNER, run_child

        names = [value.name for value in graph.inputs]
        outputs = [value.name for value in graph.outputs]
        request = {"model": str((self.folder / MODEL).resolve()), "inputs": names, "outputs": outputs}
        given = {name: array.astype(np.int32) if array.dtype.kind in "ib" else array for name, array in feeds.items()}
        script = RUNNER.with_name("module_runner.py")
        ended = run_child(script, request, given, interpreter=sys.executable, timeout_s=TIMEOUT_S)
        arrays = [ended.arrays.get(f"outputs/{name}") for name in outputs]
        found = [array for array in arrays if array is not None]
        if not ended.ok or len(found) < len(outputs):
            raise LadingError("B668", f"the runtime {ended.outcome}", where=ended.log[-2000:])
        return found

    def contract(self, graph: Graph, made: Made) -> c.Contract:
        """What the file promises."""
        from backends.mnn.contract import weight_entry

        assert isinstance(self.order.target, MnnTarget)
        card = ModelCard.of(graph)
        return c.Contract(
            compiler=described.compiler(),
            target=c.Target(profile=self.order.target.name, releases=self.order.target.versions),
            model=described.model(card),
            sources=described.sources(card.sources),
            config_digest=card.config_digest,
            signature=_as_held(described.signature(graph)),
            files=tuple(
                c.FileEntry.of(self.folder, name, role) for name, role in ((MODEL, "model"), (WEIGHTS, "weights"))
            ),
            weights=tuple(weight_entry(matrix, {}, WEIGHTS) for matrix in self.emission.matrices.values()),
            pipeline=described.pipeline(made),
            calibration=described.calibration(graph),
            runtime=c.Runtime(requires=c.Requirements(min_release=self.order.target.versions[0])),
            verified=tuple(self._verified()),
            warnings=described.notices(made),
            verdict=described.verdict(made),
        )

    def _verified(self) -> list[c.Verification]:
        import platform

        from backends.mnn.target.environments import installed_version

        if self.verification is None:
            return []
        where, release = f"{platform.system()} {platform.machine()}", installed_version() or ""
        pairs = zip(("decoded weights", "float"), self.verification, strict=True)
        return [
            c.Verification(
                release=release, platform=where, settings=None, reference=reference,  # type: ignore[arg-type]
                prompt_tokens=None, max_abs_error=gap.absolute, kl=None, top1=None,
            )
            for reference, gap in pairs
        ]  # fmt: skip

    def judged(self) -> str | None:
        """The release that ran, and what was lost there."""
        from backends.mnn.target.environments import installed_version

        if self.verification is None:
            return None
        whole = self.verification[1]
        return f"on MNN {installed_version()}: outputs off by {whole.relative:.1e} of the largest"

    def figures(self) -> Figures | None:
        """The measurements."""
        if self.verification is None:
            return None
        rows = [
            (what, f"{gap.relative:.1e}")
            for what, gap in zip(("its weights", "original"), self.verification, strict=True)
        ]
        return Figures("run on MNN", ("against", "relative error"), rows, ("against",))


def _as_held(signature: c.Signature) -> c.Signature:
    """The signature with the element types in which MNN's tensors hold those of the graph."""
    from backends.mnn.dialect.constants import held
    from ir.base.types import DTYPES

    def known(name: str) -> str:
        return held(DTYPES[name]).name

    inputs = tuple(replace(port, dtype=known(port.dtype)) for port in signature.inputs)
    outputs = tuple(replace(port, dtype=known(port.dtype)) for port in signature.outputs)
    return replace(signature, inputs=inputs, outputs=outputs)


__all__ = ["MODEL", "WEIGHTS", "MnnModule", "ModuleCompilation"]
