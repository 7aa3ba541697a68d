"""What a text case says, and what running it shows; ``conftest.py`` says how cases are written and collects them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ir.evaluate.random_feeds import sample_feeds
from ir.graph.graph import Graph
from ir.quant.statistics.moments import CalibrationText
from ir.quant.statistics.samples import ArraySamples, split
from ir.text.parser import parse
from passes.framework.base import PassContext
from passes.framework.check_numbers import CheckNumbers
from passes.framework.instruments import VerifyEach
from passes.framework.manager import PassManager, Report, Step
from tests.support.paths import ROOT

FOLDER = ROOT / "tests" / "cases"
SEPARATOR = "// -----"
KEYS = ("pipeline", "tokens", "held-out", "samples", "numbers", "warning", "first")
"""What the lines at the head of a case may say."""
_ERROR = re.compile(r"//\s*error:\s*(\w+)")
_OUTPUT = re.compile(r'\s*%("[^"]*"|[\w.]+)')


@dataclass(frozen=True)
class Case:
    """One case of a file.

    Attributes:
        title: what it shows.
        pipeline: passes to run.
        text: the graph, and whatever stands before the expected one.
        expect: the graph expected, or ``unchanged``; None where an error is.
        code: of the error expected.
        speaks_of: output of the node that the error is about; empty for any.
        windows, held_out: token ids to calibrate on, and to measure with.
        samples: how many made-up inputs to calibrate on.
        unchecked: why numbers cannot be compared before and after; empty where they are.
        warnings: codes of the warnings expected, in order.
        first: outputs of nodes that are moved to the front, since text can only be read in a right order.
    """

    title: str
    pipeline: str
    text: str
    expect: str | None
    code: str = ""
    speaks_of: str = ""
    windows: tuple[tuple[int, ...], ...] = ()
    held_out: tuple[tuple[int, ...], ...] = ()
    samples: int = 0
    unchecked: str = ""
    warnings: tuple[str, ...] = ()
    first: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Case:
        """The case that a part of a file spells."""
        before, mark, after = text.partition("// expect:")
        head = [line[2:].strip() for line in before.splitlines() if line.startswith("//")]
        said: dict[str, list[str]] = {key: [] for key in KEYS}
        for line in head:
            key, colon, value = line.partition(":")
            if colon and key in said:
                said[key].append(value.strip())
        if len(said["pipeline"]) != 1:
            raise ValueError(f"a case needs one '// pipeline:' line:\n{text}")
        error = next((line for line in before.splitlines() if _ERROR.search(line)), "")
        if bool(mark) == bool(error):
            raise ValueError(f"a case needs either '// expect:' or '// error: CODE':\n{text}")
        output = _OUTPUT.match(error)
        return cls(
            title=next((line for line in head if line and line.partition(":")[0] not in (*KEYS, "error")), "case"),
            pipeline=said["pipeline"][0],
            text=before,
            expect=after.strip() if mark else None,
            code=_ERROR.search(error)[1] if error else "",
            speaks_of=output[1].strip('"') if output else "",
            windows=tuple(tuple(map(int, line.split())) for line in said["tokens"]),
            held_out=tuple(tuple(map(int, line.split())) for line in said["held-out"]),
            samples=int(" ".join(said["samples"]) or 0),
            unchecked=" ".join(said["numbers"]),
            warnings=tuple(said["warning"]),
            first=tuple(" ".join(said["first"]).split()),
        )

    def graph(self, base: Path) -> Graph:
        """The graph to begin with; paths in it are relative to `base`."""
        graph = parse(self.text, base=base)
        for name in reversed(self.first):
            node = graph.value(name).producer
            if node is not graph.first:
                graph.move(node, before=graph.first)
        return graph

    def run(self, graph: Graph) -> Report:
        """Run the pipeline, verifying the graph and evaluating it around every pass."""
        watch = [VerifyAfter() if self.first else VerifyEach()]
        if not (self.unchecked or self.code):
            watch.append(CheckNumbers())
        settings: list[object] = []
        if self.windows:
            both = (self.windows, self.held_out)
            settings.append(CalibrationText(*(tuple(np.array(ids, np.int32) for ids in part) for part in both)))
        if self.samples:
            settings.append(split(ArraySamples([sample_feeds(graph, seed=seed) for seed in range(self.samples)])))
        return PassManager(self.pipeline, watch).run(graph, PassContext(*settings))


class VerifyAfter(VerifyEach):
    """Verifies what passes leave, not what the first one is given."""

    def before(self, step: Step, graph: Graph) -> None:
        """Leave the graph unverified."""


def cases_of(path: Path) -> list[Case]:
    """The cases of a file, in order."""
    return [Case.read(part) for part in path.read_text().split(SEPARATOR)]
