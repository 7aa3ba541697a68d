"""The page of the manual that says which family was right, or refused, on which release: ``docs/family-matrix.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

from tests.support.families.cases import CASES
from tests.support.families.judge import GRAPH, Verdict

Results = Mapping[str, Mapping[str, Verdict]]


def family_page(results: Results, columns: Sequence[str], made: str) -> str:
    """Markdown.

    Args:
        results: verdicts by case and column.
        columns: `GRAPH` and releases.
        made: date of the run.
    """
    kinds = list(dict.fromkeys(CASES[name].model_type for name in results))
    heads = ["`model_type`", "checkpoints", *("ONNX" if column == GRAPH else f"MNN {column}" for column in columns)]
    rows = []
    for kind in kinds:
        own = [name for name in results if CASES[name].model_type == kind]
        cells = [_cell([results[name].get(column) for name in own]) for column in columns]
        rows.append([f"`{kind}`", str(len(own)), *cells])
    counts = []
    for column in columns:
        found = [results[name][column].status for name in results if column in results[name]]
        counts.append(f"{found.count('right')} of {len(found)}")
    rows.append(["all", str(len(results)), *counts])
    parts = [
        "# Families on releases",
        "<!-- Written by `python -m tests.support.families.judge --to mnn --markdown FILE`; do not edit. -->",
        fill(
            f"Tiny checkpoints of {len(kinds)} model types, made with random weights that let every feature matter, in float32, "
            f"{made}. What is compared are the logits of three prompts, some longer than windows and trained lengths, with "
            "those of the original implementation in torch. Column ONNX is the graph in onnxruntime, within 0.0001; on a "
            "release of MNN the logits of each prompt at once and of one through the key/value cache, within 0.001; both in "
            "proportion more where logits exceed 10. A checkpoint is right or refused with a reason.",
            118,
            break_long_words=False,
        ),
        "- ✓ all checkpoints of the type are right\n- a number: so many are right, the others are refused\n- a code: all are "
        "refused\n- ✗ some are wrong",
        _table(heads, rows),
    ]
    reasons = _reasons(results)
    if reasons:
        parts += ["## Why checkpoints are refused", _table(["code", "checkpoints", "where", "reason"], reasons)]
    return "\n\n".join(parts) + "\n"


def _cell(verdicts: Sequence[Verdict | None]) -> str:
    known = [verdict for verdict in verdicts if verdict is not None]
    if any(verdict.status in ("wrong", "broken") for verdict in known):
        return "✗"
    right = sum(verdict.status == "right" for verdict in known)
    if right == len(known):
        return "✓" if known else ""
    codes = ", ".join(sorted({verdict.code for verdict in known if verdict.status == "refused"}))
    return f"{right} of {len(known)}, {codes}" if right else codes


def _reasons(results: Results) -> list[list[str]]:
    grouped: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, row in results.items():
        for column, verdict in row.items():
            if verdict.status == "refused":
                grouped.setdefault((verdict.code, verdict.message), {}).setdefault(name, []).append(column)
    found = []
    for (code, message), names in sorted(grouped.items()):
        places = sorted({column for columns in names.values() for column in columns})
        shown = ", ".join(f"`{name}`" for name in names)
        found.append([code, shown, ", ".join(places), message.replace("|", "\\|").replace("\n", " ")])
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines).replace("|  |", "| |").replace("|  |", "| |")
