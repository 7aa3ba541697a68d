"""``python -m tools.repair``: write a model that somebody else exported again so that other MNN releases run it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ir.diag import LadingError
from tools.cli import JSON_OPTION, QUIET_OPTION, Screen, command

if TYPE_CHECKING:
    from backends.mnn.profiles import Target
    from backends.mnn.subject import Subject
    from ir.graph import Graph

CLEAN_UP = "sink-layouts,cse,dce"
"""What is run on a lifted graph: it finds the packed layouts again that reading forgets."""


@dataclass
class Repaired:
    """What was done.

    Attributes:
        out: the new directory.
        releases: releases it was written for.
        before, after: releases of the target on which the old and the new model are healthy.
        operators: number of operators before and after.
        kept: True when all codes and scales were copied as they were; False when scales were widened.
    """

    out: Path
    releases: tuple[str, ...]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    operators: tuple[int, int] = (0, 0)
    kept: bool = True

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "out": str(self.out), "releases": list(self.releases), "healthy_before": self.before,
            "healthy_after": self.after, "operators": list(self.operators), "bytes_kept": self.kept,
        }  # fmt: skip


@command("repair")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--target", default="portable", show_default=True, metavar="VERSIONS",
              help="Releases to write for: 'portable', a version, or clauses such as \">=3.4,<3.6\".")  # fmt: skip
@JSON_OPTION
@QUIET_OPTION
def main(path: Path, out: Path, target: str, as_json: bool, quiet: bool) -> int:
    """Write the MNN model directory PATH again in forms that the target's releases run.

    Weights keep their codes and scales. PATH is not changed.
    """
    done = repair(path, out, target)
    text = (
        f"{path}: healthy on {', '.join(done.before) or 'none'} of {', '.join(done.releases)}\n"
        f"{out}: healthy on {', '.join(done.after)}\n"
        f"operators {done.operators[0]} -> {done.operators[1]}; "
        f"{'weights kept bit for bit' if done.kept else 'codes kept bit for bit, half-float scales widened'}"
    )
    if not quiet:
        Screen(as_json, quiet).data(done.as_dict(), text)
    return 0


def repair(path: Path, out: Path, target_name: str = "portable") -> Repaired:
    """Lift, rewrite and judge; the directory appears complete or not at all.

    Raises:
        LadingError: B710 to B742, F640 to F646, U951 when the result is not healthy.
    """
    from backends.mnn.doctor import examine
    from backends.mnn.profiles import target
    from backends.mnn.respell import require_readable, rewrite
    from backends.mnn.subject import Subject
    from backends.staging import staged_directory

    chosen = target(target_name)
    subject = Subject(path)
    require_readable(subject)
    before = examine(path, chosen.releases)
    graph = lifted(subject, chosen)
    with staged_directory(out) as staging, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        layout = rewrite(graph, subject, staging, chosen, pool)
        after = examine(staging, chosen.releases)
        if not after.healthy:
            problems = [item.diagnostic() for item in after.findings if item.severity == "error"]
            error = LadingError("U951", f"the repaired model is not healthy: {problems[0].message}", where=str(path))
            error.diagnostics += tuple(problems)
            raise error
    halves = any(
        matrix.weight.quantized is not None
        and getattr(matrix.weight.quantized.source, "alpha", None) is not None
        and matrix.weight.quantized.source.alpha.type.dtype.name != matrix.weight.quantized.spec.scale
        for matrix in layout.matrices.values()
    )
    return Repaired(
        out,
        chosen.versions,
        [version for version in chosen.versions if before.healthy_on(version)],
        [version for version in chosen.versions if after.healthy_on(version)],
        (len(subject.net["oplists"]), len(graph.nodes)),
        not halves,
    )


def lifted(subject: Subject, target: Target) -> Graph:
    """The model as a legal graph in the target's calling convention, with its embedding rows as a table."""
    from frontends.mnn import lift
    from passes.base import PassContext
    from passes.manager import PassManager
    from passes.pipeline import load

    scale = subject.llm_config.values.get("attn_scale", 0.0)
    graph = lift(
        subject.net,
        subject.weight_path,
        convention=target.signature,
        attention_scale=float(scale) if isinstance(scale, (int, float)) else 0.0,
        scale="" if target.f16_scales else "f32",
    )
    _set_embedding(graph, subject, target)
    PassManager(load(CLEAN_UP)).run(graph, PassContext())
    return graph


def _set_embedding(graph: Graph, subject: Subject, target: Target) -> None:
    """Make embedding rows that lie in the weight file a table of the graph."""
    from backends.mnn.doctor_files import tie_forms, tie_numbers
    from frontends.mnn_weights import WeightFile, add_weight, embedding_matrix

    tie = subject.llm_config.values.get("tie_embeddings")
    found = tie_numbers(tie)
    if found is None or found[0] == 0:
        return
    half = tie.get("alpha_dtype") == "fp16" if isinstance(tie, dict) else tie[5:] == [1]
    layer = subject.logits_layer or {}
    rows = layer.get("main", {}).get("common", {}).get("outputCount", 0)
    columns = graph.value("input_ids").shape[-1]
    weights = WeightFile(subject.weight_path, "" if target.f16_scales else "f32")
    matrix = embedding_matrix(weights, found, rows, columns, half, layer)
    forms = (tie_forms(subject, tie) or set()) - {"object", "six"}
    readable = all(forms <= set(release.tie_embeddings) for release in target.releases)
    if readable:
        graph.set_table("embedding", add_weight(graph, "embedding", matrix, rows_first=True))
        return
    _split_embedding(graph, matrix)


def _split_embedding(graph: Graph, matrix: Any) -> None:
    """Rows that a release cannot decode come exactly from a file of their own, as a sum of bfloat16 parts."""
    from ir.tensor import Tensor, cast
    from ir.types import F32
    from passes.legalize_mnn import Lowering

    table = cast(matrix, F32) if isinstance(matrix, Tensor) else matrix.source
    graph.set_table("embedding", graph.add_const("embedding", table))
    Lowering(graph).embedding_parts()


if __name__ == "__main__":
    main()
