"""Guards for applications: a Python module and a C++ header, written beside a model, that check inputs before
inference.

Both hold the signature of one contract as a table and apply the rules of `backends.contract.feed_checks`, with its
codes, so that an application can refuse a wrong feed without this project and without reading the contract.
"""

from __future__ import annotations

import pprint
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.contract import Contract, FileEntry
from backends.templates import render
from ir.base.whole_files import write_whole

PYTHON, HEADER = "check_inputs.py", "lading_guard.h"
_RUNTIME = Path(__file__).with_name("check_inputs.py")
_LINE = "SIGNATURE: dict[str, Any] ="


def guard_signature(contract: Contract) -> dict[str, Any]:
    """What the guards know of a contract: plain data in the form of `backends.guard.check_inputs.SIGNATURE`."""
    inputs = [
        {
            "name": item.name,
            "dtype": item.dtype,
            "meaning": item.meaning + (f"; {item.default} is the default" if item.default is not None else ""),
            "shapes": [list(shape) for shape in dict.fromkeys(form.shape for form in item.shapes)],
            "low": item.values.min if item.values is not None else None,
            "high": item.values.max if item.values is not None else None,
        }
        for item in contract.signature.inputs
    ]
    dims = {
        name: {"low": dim.low, "high": dim.high, "multiple_of": dim.multiple_of, "sum_of": list(dim.sum_of)}
        for name, dim in contract.signature.dims.items()
    }
    state = contract.signature.state
    return {"inputs": inputs, "dims": dims, "past": state.past if state is not None else None}


def python_guard(contract: Contract) -> str:
    """The text of ``check_inputs.py``."""
    lines = _RUNTIME.read_text(encoding="utf-8").splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith(_LINE))
    table = pprint.pformat(guard_signature(contract), width=110, sort_dicts=False)
    lines[place] = f"{_LINE} {table}"
    return "\n".join(lines) + "\n"


def cpp_guard(contract: Contract) -> str:
    """The text of ``lading_guard.h``."""
    return render(__file__, "lading_guard.h.jinja", literal=cpp_literal, **guard_signature(contract))


def cpp_literal(value: str) -> str:
    """A C++ string literal of printable ASCII; other bytes as three octal digits."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\?' else f"\\{byte:03o}" for byte in value.encode())
    return f'"{"".join(plain)}"'


def add_guard(contract: Contract, folder: Path) -> Contract:
    """Write both guards into a model directory and list them in its contract, which is returned and not written."""
    for name, text in ((PYTHON, python_guard(contract)), (HEADER, cpp_guard(contract))):
        with write_whole(folder / name, durable=False) as part:
            part.write_text(text, encoding="utf-8")
    entries = [FileEntry.of(folder, name, "other") for name in (PYTHON, HEADER)]
    kept = [entry for entry in contract.files if entry.path not in (PYTHON, HEADER)]
    return replace(contract, files=tuple(sorted([*kept, *entries], key=lambda entry: entry.path)))
