"""The page ``docs/conformance-mnn.md``, from the record of what became of every case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tools.conformance.judge import CRASH, FAILS, REFUSED, RIGHT, STATUSES, UNJUDGED, WRONG
from tools.conformance.record import Record, Row

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "conformance-mnn.md"
DATA = ROOT / "tests" / "data" / "conformance-mnn.tsv"
PACKAGES = ("onnx", "onnxruntime")


def made_with() -> str:
    """The packages that the outcomes depend on besides MNN."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def page(record: Record) -> str:
    """The text of the page."""
    from backends.templates import render

    newest = record.releases[-1]
    plain = [row for row in record.rows if row.plain]
    return render(
        __file__,
        "page.md.jinja",
        record=record,
        newest=newest,
        plain=len(plain),
        networks=sum(row.key.startswith("light/") for row in record.rows),
        totals=[_total(record.rows, plain, release) for release in record.releases],
        codes=_codes(record.rows, newest),
        operators=[_operator(name, rows, newest) for name, rows in _by_operator(record.rows)],
    )


def _counted(words: Sequence[str]) -> dict[str, int]:
    """How many of each status; codes are refusals."""
    counts = Counter(word if word in STATUSES else REFUSED for word in words)
    refused = counts[REFUSED] + counts[UNJUDGED]
    return {"right": counts[RIGHT], "refused": refused, "wrong": counts[WRONG] + counts[FAILS], "crash": counts[CRASH]}


def _total(rows: Sequence[Row], plain: Sequence[Row], release: str) -> dict[str, object]:
    return {
        "release": release,
        "ours": _counted([row.ours[release] for row in rows]),
        "raw": _counted([row.raw[release] for row in rows]),
        "ours_plain": _counted([row.ours[release] for row in plain]),
        "raw_plain": _counted([row.raw[release] for row in plain]),
    }


def _by_operator(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.operator, []).append(row)
    return sorted(found.items(), key=lambda item: (item[0] == "several operators", item[0].lower()))


def _operator(name: str, rows: Sequence[Row], release: str) -> dict[str, object]:
    words = [row.ours[release] for row in rows]
    codes = Counter(word for word in words if word not in (RIGHT, WRONG, FAILS, CRASH))
    why = ", ".join(f"{count} {_named(code)}" for code, count in sorted(codes.items()))
    raw = _counted([row.raw[release] for row in rows])
    return {"name": name, "cases": len(rows), "ours": _counted(words), "why": why, "raw": raw}


def _named(code: str) -> str:
    return {"feed": "whose inputs do not fit", UNJUDGED: "that cannot be judged"}.get(code, code)


def _codes(rows: Sequence[Row], release: str) -> Mapping[str, int]:
    words = Counter(row.ours[release] for row in rows)
    return {_named(code): words[code] for code in sorted(words) if code not in (RIGHT, WRONG, FAILS, CRASH)}


__all__ = ["DATA", "PACKAGES", "PAGE", "made_with", "page"]
