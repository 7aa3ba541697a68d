"""The table of diagnostic codes: every code is explained, raised somewhere and by a test, and there is no other."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from ir.base.codes import AREAS
from ir.base.diag import known_codes
from ir.base.explanations import explanation, explanations
from ir.graph.graph import Graph
from tests.support.paths import ROOT
from tests.support.suite.code_record import RAISED, SEEN, SHOWN, accept_example

PACKAGES = ("ir", "passes", "frontends", "backends", "tools", "lading")
CODE = re.compile(r"[A-Z][0-9]{3}")


@cache
def raised() -> dict[str, set[str]]:
    """Codes that stand as a string of their own in the source, with the files they stand in."""
    found: dict[str, set[str]] = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name == "codes.py":
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


def test_every_code_has_a_long_explanation():
    missing = [code for code in known_codes() if explanation(code) is None]
    assert missing == [], "write a section in the folder explanations beside the table"


def test_explanations_are_of_codes_and_in_order():
    for area in AREAS:
        codes = list(explanations(area))
        assert set(codes) <= set(known_codes()), area
        assert [code for code in codes if code[0] != area] == []


@pytest.mark.parametrize("area", AREAS)
def test_an_explanation_says_more_than_the_help_text(area):
    """Cause and remedy are sentences of their own, and the example is a message with this code."""
    for code, item in explanations(area).items():
        assert item.example.startswith(tuple(f"{word}[{code}]: " for word in ("error", "warning", "note"))), code
        assert all(line.startswith("  ") for line in item.example.splitlines()[1:]), code
        assert known_codes()[code] not in (item.cause, item.remedy), code
        for text in (item.cause, item.remedy):
            assert len(text.split()) >= 3 and text[-1] in ".`", (code, text)


def test_no_two_explanations_are_the_same():
    items = [item for area in AREAS for item in explanations(area).values()]
    texts = [(item.cause, item.remedy) for item in items]
    assert [text for text in set(texts) if texts.count(text) > 1] == []


def test_methods_that_explanations_speak_of_exist():
    for area in AREAS:
        for code, item in explanations(area).items():
            for name in re.findall(r"`Graph\.(\w+)`", item.cause + item.remedy):
                assert hasattr(Graph, name), code


@pytest.mark.mnn
def test_commands_of_explanations_exist():
    """Options and commands that remedies speak of are those of the command line."""
    from click import Context

    from tools.main import main

    top = Context(main)
    options = {"--version", "--help", "--force-reinstall", "--no-deps"}
    for name in main.list_commands(top):
        options |= {text for item in main.get_command(top, name).params for text in item.opts}
    for area in AREAS:
        for code, item in explanations(area).items():
            text = f"{item.cause} {item.remedy}"
            named = set(re.findall(r"`(?:python -m )?lading ([a-z]+)", text))
            assert named <= set(main.list_commands(top)), code
            assert {word for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)} <= options, code


@pytest.mark.after_all
def test_every_example_of_an_explanation_was_printed(pytestconfig):
    """``--accept`` writes what was printed into the explanations."""
    wrong = sorted(set(known_codes()) - SHOWN)
    if pytestconfig.getoption("--accept"):
        for code in wrong:
            accept_example(code)
    told = "\n\n".join(f"{code}:\n" + "\n".join(SEEN.get(code, ["(no test raised it)"])[:3]) for code in wrong)
    assert wrong == [], f"messages are not those of the examples; what was seen instead:\n\n{told}"


@pytest.mark.mnn
def test_every_code_named_in_the_manual_is_in_the_table():
    pages = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    areas = "".join(AREAS)
    named = {code for page in pages for code in re.findall(rf"\b[{areas}][0-9]{{3}}\b", page.read_text())}
    assert sorted(named - set(known_codes())) == []
