"""Which diagnostic codes the product raised while the tests ran; the check itself is in ``test_codes.py``.

`watch` is called once, by ``conftest.py``. From then on every `Diagnostic` and every finding of the doctor leaves its
code in `RAISED` when code outside ``tests/`` made it; those that a test makes for itself do not count. What a child
process raised is not seen from here: a test that reads its output says so with `expect_code`.

The text of each is compared with the example of the code's long explanation (`ir.base.explanations`): codes whose example
was seen are in `SHOWN`, and `SEEN` holds texts of the others.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from functools import cache, wraps
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
RAISED: set[str] = set()
SHOWN: set[str] = set()
SEEN: dict[str, list[str]] = {}
WHOLE = pytest.StashKey[bool]()
"""Of the configuration: no test of the suite is left out."""

MOST_SEEN = 20
"""Texts of a code that are kept."""


def watch() -> None:
    """Record codes from now on."""
    from ir.base.diag import Diagnostic
    from ir.base.plugins import loaded

    _watch(Diagnostic)
    if any(item.name == "mnn" for item in loaded()):
        from backends.mnn.doctor.findings import Finding

        _watch(Finding)


def _watch(cls: type) -> None:
    init = cls.__init__
    home = sys.modules[cls.__module__].__file__

    @wraps(init)
    def recorded(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if _is_product(sys._getframe(1), home):
            RAISED.add(self.code)
            note_text(self.code, str(self.diagnostic() if hasattr(self, "diagnostic") else self))

    cls.__init__ = recorded


def note_text(code: str, text: str) -> None:
    """Compare what a diagnostic prints with the example of its code."""
    if code in SHOWN:
        return
    example = example_of(code)
    if example is not None and example.fullmatch(text):
        SHOWN.add(code)
    elif len(SEEN.setdefault(code, [])) < MOST_SEEN:
        SEEN[code].append(text)


@cache
def example_of(code: str) -> re.Pattern[str] | None:
    """What the example of a code's explanation fits, where ``...`` is any text."""
    from ir.base.explanations import explanation

    found = explanation(code)
    return None if found is None else re.compile(".*?".join(map(re.escape, found.example.split("..."))), re.DOTALL)


def taken() -> dict[str, Any]:
    """What was recorded, as data that JSON can hold."""
    return {"raised": sorted(RAISED), "shown": sorted(SHOWN), "seen": SEEN}


def add(record: dict[str, Any]) -> None:
    """Add what another process recorded, as `taken` gave it."""
    RAISED.update(record["raised"])
    SHOWN.update(record["shown"])
    for code, texts in record["seen"].items():
        if code not in SHOWN:
            SEEN.setdefault(code, []).extend(texts)


def accept_example(code: str) -> None:
    """Write a text that was seen into the explanation of a code, paths of this run left out."""
    if code not in SEEN:
        return
    text = re.sub(r"(?<![\w.])/[^\s'\",:]*/", ".../", min(SEEN[code], key=len))
    for path in ROOT.glob(f"**/explanations/{code[0]}.md"):
        page = path.read_text(encoding="utf-8")
        section = rf"(^## {code}\n.*?^```text\n).*?(?=^```$)"
        path.write_text(
            re.sub(section, lambda m: f"{m[1]}{text}\n", page, count=1, flags=re.MULTILINE | re.DOTALL),
            encoding="utf-8",
        )


def is_whole(root: Path, collected: Iterable[Path], arguments: Iterable[str]) -> bool:
    """True when tests of every test file and of every file of text cases were collected, and no single one was
    named."""
    tests = root / "tests"
    files = {*tests.rglob("test_*.py"), *tests.glob("cases/*.lading")}
    return files <= set(collected) and not any("::" in argument for argument in arguments)


def _is_product(frame: FrameType | None, home: str) -> bool:
    """True when the nearest code outside the module of the class is not a test's."""
    while frame is not None and frame.f_code.co_filename == home:
        frame = frame.f_back
    return frame is not None and TESTS not in Path(frame.f_code.co_filename).parents


def expect_code(output: str, code: str) -> None:
    """Assert that what a child process wrote reports a code, as text or as JSON, and record the code as raised."""
    shown = set(re.findall(r"\b(?:error|warning)\[([A-Z]\d{3})\]", output)) | _codes_in_json(output)
    assert code in shown, f"{code} is not reported:\n{output}"
    RAISED.add(code)
    for text in re.findall(rf"^(?:error|warning)\[{code}\]:.*(?:\n  (?!\(lading).*)*", output, re.MULTILINE):
        note_text(code, text)


def _codes_in_json(output: str) -> set[str]:
    """What stands under ``code`` anywhere in a JSON document; nothing when the output is none."""
    try:
        data = json.loads(output)
    except ValueError:
        return set()
    found, waiting = set(), [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            found.update(value for key, value in item.items() if key == "code" and isinstance(value, str))
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found
