"""A matrix of models and releases: rows, cells, and what is to be run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.matrix.cell import PASSED, Artefact


@dataclass
class Matrix:
    """All that a run found out.

    Attributes:
        releases: columns, oldest first.
        unavailable: why a release could not be had, by release.
        rows: models and precisions in order.
        cells: results by row key and release; absent where nothing was run.
        reused: how many cells were kept from an earlier run.
        seconds: wall time.
    """

    releases: tuple[str, ...]
    unavailable: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    cells: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    reused: int = 0
    seconds: float = 0.0

    def cell(self, row: Row, release: str) -> dict[str, Any] | None:
        """The result of a cell, or None when it was not run."""
        return self.cells.get((row.key, release))

    def precision(self, row: Row) -> str:
        """What a row is called beside its family, with what tells it from another one where both are called alike."""
        alike = sum((other.family, other.precision) == (row.family, row.precision) for other in self.rows)
        return f"{row.precision} ({row.place})" if alike > 1 else row.precision

    def failing(self) -> list[tuple[Row, str, dict[str, Any]]]:
        """Cells that were run and have a fault."""
        found = ((row, release, self.cell(row, release)) for row in self.rows for release in self.releases)
        return [
            (row, release, cell) for row, release, cell in found if cell is not None and cell["status"] not in PASSED
        ]

    def right(self) -> int:
        """How many cells were compared with a checkpoint and are right."""
        return sum(cell["status"] == "right" for cell in self.cells.values())

    @property
    def ok(self) -> bool:
        """Every model could be made, something was run, and no cell that was run has a fault."""
        return bool(self.cells) and not self.failing() and not any(row.failure for row in self.rows)


@dataclass(frozen=True)
class Job:
    """What to run, and how."""

    out: Path
    interpreters: Mapping[str, Path]
    jobs: int
    timeout_s: float
    fresh: bool
    say: Callable[[str], None]


@dataclass
class Row:
    """One model in one precision.

    Attributes:
        family: name of the model.
        precision: pipeline that it was compiled with, or widths that it has.
        releases: what it is run on.
        place: what tells it from others of the same name: target, or folder.
        artefact: what is run; None when it could not be made, and `failure` says why.
    """

    family: str
    precision: str
    releases: tuple[str, ...]
    place: str
    artefact: Artefact | None = None
    failure: str = ""

    @property
    def key(self) -> str:
        """Name that is unique among the rows, fit for files."""
        return _slug(f"{self.family}--{self.precision}", self.place)


def _slug(text: str, place: str) -> str:
    from hashlib import sha256

    name = re.sub(r"[^\w.-]+", "-", text).strip("-")
    return f"{name}--{sha256(f'{text} {place}'.encode()).hexdigest()[:8]}"
