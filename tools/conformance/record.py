"""What became of every case on every release, as one small file: a line for each case."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.conformance.judge import REFUSED, Verdict

HEAD = "# "


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        key: see `tools.conformance.cases.Case.key`.
        operator: what it tests.
        plain: its inputs and outputs are of float32, int32, int64 or bool.
        ours: by release, what became of it on the way through this compiler: a status of `tools.conformance.judge`, for
            refusals their code.
        raw: the same of the converter of the release's wheel alone.
    """

    key: str
    operator: str
    plain: bool
    ours: Mapping[str, str]
    raw: Mapping[str, str]


@dataclass(frozen=True)
class Record:
    """All cases.

    Attributes:
        made_with: packages that the outcomes depend on, with their versions.
        releases: oldest first.
        rows: by key.
    """

    made_with: str
    releases: tuple[str, ...]
    rows: Sequence[Row]


def word(verdict: Verdict) -> str:
    """What became of a case in one word."""
    return verdict.code if verdict.status == REFUSED and verdict.code else verdict.status


def rows_of(ours: Mapping[str, Iterable[Verdict]], raw: Mapping[str, Iterable[Verdict]]) -> list[Row]:
    """One row for each case, from the verdicts by release."""
    found: dict[str, Verdict] = {}
    words: list[dict[str, dict[str, str]]] = [{}, {}]
    for place, by_release in enumerate((ours, raw)):
        for release, verdicts in by_release.items():
            for verdict in verdicts:
                found.setdefault(verdict.key, verdict)
                words[place].setdefault(verdict.key, {})[release] = word(verdict)
    return [
        Row(key, found[key].operator, found[key].plain, words[0].get(key, {}), words[1].get(key, {}))
        for key in sorted(found)
    ]


def write(record: Record, path: Path) -> None:
    """Write a record; what is the same on all releases is written once."""
    lines = [HEAD + record.made_with, HEAD + " ".join(record.releases)]
    for row in record.rows:
        fields = [
            row.key,
            row.operator,
            "plain" if row.plain else "",
            _joined(row.ours, record),
            _joined(row.raw, record),
        ]
        lines.append("\t".join(fields))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> Record:
    """Read what `write` wrote."""
    first, second, *rest = path.read_text(encoding="utf-8").splitlines()
    releases = tuple(second.removeprefix(HEAD).split())
    rows = []
    for line in rest:
        key, operator, plain, ours, raw = line.split("\t")
        rows.append(Row(key, operator, bool(plain), _parted(ours, releases), _parted(raw, releases)))
    return Record(first.removeprefix(HEAD), releases, rows)


def _joined(words: Mapping[str, str], record: Record) -> str:
    each = [words[release] for release in record.releases]
    return each[0] if len(set(each)) == 1 else " ".join(each)


def _parted(text: str, releases: Sequence[str]) -> dict[str, str]:
    each = text.split(" ")
    return dict(zip(releases, each * len(releases) if len(each) == 1 else each, strict=False))


__all__ = ["Record", "Row", "read", "rows_of", "word", "write"]
