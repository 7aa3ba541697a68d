"""The table of diagnostic codes: every code is explained, raised somewhere and by a test, and there is no other."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from ir.base.codes import AREAS
from ir.base.diag import known_codes
from tests.support.code_record import RAISED
from tests.support.paths import ROOT

PACKAGES = ("ir", "passes", "frontends", "backends", "tools")
CODE = re.compile(r"[A-Z][0-9]{3}")


@cache
def raised() -> dict[str, set[str]]:
    """Codes that stand as a string of their own in the source, with the files they stand in."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path == ROOT / "ir" / "codes.py":
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
                    found.setdefault(node.value, set()).add(str(path.relative_to(ROOT)))
    return found


def test_codes_are_a_known_letter_and_three_digits():
    assert [code for code in known_codes() if not CODE.fullmatch(code) or code[0] not in AREAS] == []
    assert {code[0] for code in known_codes()} == set(AREAS)


def test_every_code_has_a_help_text_that_is_a_sentence():
    bad = [code for code, text in known_codes().items() if len(text) < 20 or " " not in text or not text.endswith(".")]
    assert bad == []


def test_no_two_codes_say_the_same():
    texts = list(known_codes().values())
    assert [code for code, text in known_codes().items() if texts.count(text) > 1] == []


def test_every_code_is_raised_somewhere():
    assert sorted(set(known_codes()) - set(raised())) == []


@pytest.mark.mnn
def test_every_code_in_the_source_is_in_the_table():
    assert {code: files for code, files in raised().items() if code not in known_codes()} == {}


@pytest.mark.after_all
def test_every_code_is_raised_by_a_test():
    missing = sorted(set(known_codes()) - RAISED)
    assert missing == [], f"raised by no test that ran (skipped tests may raise them): {missing}"


@pytest.mark.mnn
def test_every_code_named_in_the_manual_is_in_the_table():
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    areas = "".join(AREAS)
    named = {code for page in pages for code in re.findall(rf"\b[{areas}][0-9]{{3}}\b", page.read_text())}
    assert sorted(named - set(known_codes())) == []
