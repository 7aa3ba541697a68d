"""Which diagnostic codes the product raised while the tests ran; the check itself is in ``test_codes.py``.

`watch` is called once, by ``conftest.py``. From then on every `Diagnostic` and every finding of the doctor leaves its
code in `RAISED` when code outside ``tests/`` made it; those that a test makes for itself do not count. What a child
process raised is not seen from here: a test that reads its output says so with `expect_code`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from functools import wraps
from pathlib import Path
from types import FrameType

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
RAISED: set[str] = set()


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

    cls.__init__ = recorded


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
