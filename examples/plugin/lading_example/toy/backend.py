"""The backend: what ``lading compile --to toy`` writes, how it is verified, and what the contract says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

import backends.contract as c
from backends import described
from backends.backend import Backend, Compilation, Figures, Made, Order
from ir.base.diag import LadingError
from ir.evaluate.evaluator import evaluate
from ir.evaluate.random_feeds import sample_feeds
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph
from ir.verify.stages import INVARIANTS
from lading_example.toy.run import run
from lading_example.toy.target import RELEASE, SIGNATURE, ToyTarget, target

MODEL, WEIGHTS = "model.toy", "weights.bin"
BAR = 0.1
"""How far outputs may be off, relative to the largest."""


class ToyBackend(Backend):
    """A folder for the toy runtime."""

    runtime = "the toy runtime"
    passes = "toy"
    frontends = ("mlp",)

    def target(self, text: str | None) -> ToyTarget:
        """A number of cells."""
        return target(text)

    def begin(self, order: Order) -> Compilation:
        """Begin to compile."""
        return ToyCompilation(order)


class ToyCompilation(Compilation):
    """One model for the toy runtime; `verification` is the largest difference of an output from the original's."""

    def check(self, graph: Graph, pipeline: str) -> None:
        """Every operator must be one of the runtime's, and the weights must fit into its cells."""
        problems = INVARIANTS["toy"](graph)
        if problems:
            raise LadingError.of(problems)
        cells = sum(int(np.prod(node.inputs[1].shape)) for node in graph.nodes if node.op == "toy.Dense")
        if cells > self.order.target.cells:
            message = f"the weights need {cells} cells, and the target has {self.order.target.cells}"
            raise LadingError("B950", message, f"pipeline {pipeline}", "choose a larger target, such as 65536cells")

    def emit(self, graph: Graph) -> None:
        """Write the layers as JSON and their codes as bytes; scales are small enough for the JSON."""
        layers: list[dict[str, Any]] = []
        offset = 0
        with open(self.folder / WEIGHTS, "wb") as file:
            for node in graph.nodes:
                if node.op != "toy.Dense":
                    continue
                codes, scale = (value.const.load() for value in node.inputs[1].producer.inputs[:2])
                file.write(np.ascontiguousarray(codes, np.int8).tobytes())
                layer = {"name": node.inputs[1].name, "shape": list(codes.shape), "offset": offset}
                layers.append({**layer, "scale": scale.tolist(), "activation": node.attrs.get("activation", "none")})
                offset += codes.size
        text = json.dumps({"weights": WEIGHTS, "layers": layers})
        (self.folder / MODEL).write_text(text, encoding="utf-8")
        self.emission = layers
        self.order.lap("write")

    def verify(self, graph: Graph, original: Graph) -> None:
        """Run the folder in the toy runtime, and the original in onnxruntime."""
        feeds = sample_feeds(original)
        (wanted,) = evaluate(original, feeds).values()
        gap = float(np.abs(run(self.folder / MODEL, *feeds.values()) - wanted).max())
        largest = float(np.abs(wanted).max())
        if not gap <= BAR * max(largest, 1e-6):
            raise LadingError("V950", f"outputs are {gap:.3g} off, and the largest is {largest:.3g}")
        self.verification = gap
        self.order.lap("verify")

    def contract(self, graph: Graph, made: Made) -> c.Contract:
        """What the folder promises."""
        card = ModelCard.of(graph)
        signature = described.signature(graph)
        return c.Contract(
            compiler=described.compiler(),
            target=c.Target(profile=self.order.target.name, releases=(RELEASE,)),
            model=described.model(card),
            sources=described.sources(card.sources),
            signature=replace(
                signature,
                inputs=tuple(replace(item, meaning=SIGNATURE.inputs[0].meaning) for item in signature.inputs),
                outputs=tuple(replace(item, meaning=SIGNATURE.outputs[0].meaning) for item in signature.outputs),
            ),
            files=(
                c.FileEntry.of(self.folder, MODEL, "model"),
                c.FileEntry.of(self.folder, WEIGHTS, "weights"),
            ),
            weights=tuple(_entry(layer) for layer in self.emission),
            pipeline=described.pipeline(made),
            runtime=c.Runtime(requires=c.Requirements(min_release=RELEASE)),
            verified=() if self.verification is None else (_verified(self.verification),),
            warnings=described.notices(made),
        )

    def figures(self) -> Figures | None:
        """What was measured."""
        if self.verification is None:
            return None
        return Figures("run on the toy runtime", ("against", "max error"), [("original", f"{self.verification:.1e}")])


def _entry(layer: dict[str, Any]) -> c.WeightEntry:
    rows, columns = layer["shape"]
    storage = c.Storage(bits=8, scale_dtype="f32", method="ceiling", layout="toy-codes")
    return c.WeightEntry(
        name=layer["name"],
        file=WEIGHTS,
        offset=layer["offset"],
        bytes=rows * columns,
        shape=(rows, columns),
        storage=storage,
    )


def _verified(gap: float) -> c.Verification:
    import platform

    return c.Verification(
        release=RELEASE, platform=f"{platform.system()} {platform.machine()}", settings=None, reference="float",
        prompt_tokens=None, max_abs_error=gap, kl=None, top1=None,
    )  # fmt: skip
