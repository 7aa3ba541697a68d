"""What ``docs/families.md`` says: which families there are, and the row and case of its example, which are run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from frontends.checkpoint.load import load
from frontends.families.table import FAMILIES, WRAPPERS
from ir.evaluate.evaluator import evaluate
from tests.support.families.cases import CASES
from tests.support.families.checkpoints import make
from tests.support.paths import ROOT


def test_all_families_are_on_the_page() -> None:
    page = (ROOT / "docs" / "families.md").read_text()
    told = page[page.index("## The families") : page.index("## What a row can say")]
    rows = re.findall(r"^\|.*\|(.*)\|$", told, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"model_type"} == {*FAMILIES, *WRAPPERS}


def _file(name: str) -> dict[str, Any]:
    page = (ROOT / "docs" / "families.md").read_text()
    found = re.search(rf"<!-- file: {re.escape(name)} -->\n```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(compile(found[1], name, "exec"), names)
    return names


@pytest.mark.parametrize("spelling", ["saved", "hub"])
def test_the_row_of_the_page_computes_what_the_original_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    from dataclasses import replace

    row, case = _file("vaultgemma.py")["VAULTGEMMA"], _file("vaultgemma_case.py")["CASE"]
    monkeypatch.setitem(CASES, "vaultgemma", replace(case, spelling=spelling))
    golden = make(tmp_path, "vaultgemma")
    graph = load(tmp_path, families={"vaultgemma": row})
    for ids, wanted in zip(golden.ids, golden.logits, strict=True):
        assert abs(evaluate(graph, {"input_ids": ids})["logits"][0] - wanted).max() <= golden.bar
