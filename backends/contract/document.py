"""Reading, writing and checking a contract as a file, and the published JSON Schema."""

from __future__ import annotations

import json
import os
import re
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

from backends.contract.codec import CONTRACT_FILE, Record, codec_of
from backends.contract.records import CONTRACT_VERSION, Contract, decode
from ir.base.diag import Diagnostic, LadingError
from ir.base.whole_files import write_whole

SCHEMA_ID = "urn:lading:contract:1.0"
"""Versions that are read too; what they lack is filled in."""


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the format, made from the records; stored as ``contract.schema.json``."""
    records = sorted(Record.__subclasses__(), key=attrgetter("__name__"))
    definitions = {cls.__name__: record_schema(cls) for cls in records}
    title = f"Contract of a compiled model, version {CONTRACT_VERSION}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, "title": title}
    return {**head, **definitions.pop("Contract"), "$defs": definitions}


def record_schema(cls: type[Record]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    rows = {name: {**codec_of(hint).schema, "description": hint.__metadata__[-1]} for name, hint in hints.items()}
    return {
        "description": (cls.__doc__ or "").strip(),
        "type": "object",
        "properties": rows,
        "required": list(rows),
        "additionalProperties": False,
    }


def validate(data: Any) -> list[Diagnostic]:
    """Every problem of parsed JSON as a contract, each with ``#`` and its JSON pointer; empty when there is none.

    Structure (codes C801 to C805) is what the JSON Schema says too; when it is right, the references between the
    parts are checked (C806), which a schema cannot say.
    """
    return decode(data)[1]


def dumps(contract: Contract) -> str:
    """The canonical text: fields in order of declaration, short parts on one line, a final line break.

    ValueError when `read` would refuse it, which is a mistake of the program that built the contract.
    """
    checked, problems = decode(contract.to_json())
    if problems or checked is None:
        raise ValueError("\n".join(str(problem) for problem in problems))
    return _layout(checked.to_json(), 0) + "\n"


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _layout(value: Any, indent: int, width: int = 120) -> str:
    if isinstance(value, dict):
        parts, ends = [f"{_quote(key)}: {_layout(item, indent + 2)}" for key, item in value.items()], "{}"
    elif isinstance(value, list):
        parts, ends = [_layout(item, indent + 2) for item in value], "[]"
    else:
        return _quote(value) if isinstance(value, str) else _ENCODE(value)
    if sum(len(part) + 2 for part in parts) + indent < width and not any("\n" in part for part in parts):
        return ends[0] + ", ".join(parts) + ends[1]
    gap = "\n" + " " * (indent + 2)
    return ends[0] + gap + ("," + gap).join(parts) + "\n" + " " * indent + ends[1]


def _quote(text: str) -> str:
    """A JSON string: readable, except where a lone surrogate (from a file name) cannot be written as UTF-8."""
    return json.dumps(text) if _LONE_SURROGATE.search(text) else _ENCODE(text)


def _place(path: str | os.PathLike[str]) -> Path:
    return Path(path, CONTRACT_FILE) if os.path.isdir(path) else Path(path)


def write(contract: Contract, path: str | os.PathLike[str]) -> None:
    """Write the canonical text to a file, or to ``contract.json`` in a folder; it is replaced at once or not at all.

    Raises:
        LadingError: C807 when the file cannot be written.
        ValueError: for a contract that could not be read back.
    """
    text, place = dumps(contract), _place(path)
    try:
        with write_whole(place) as part:
            part.write_bytes(text.encode())
    except OSError as error:
        raise LadingError("C807", f"the contract cannot be written: {error.strerror}", where=str(place)) from error


def read(path: str | os.PathLike[str]) -> Contract:
    """The contract in a file, or in ``contract.json`` of a folder.

    Raises:
        LadingError: C800 when it is not a readable JSON file, else every problem of `validate`.
    """
    place = _place(path)
    try:
        data = json.loads(place.read_bytes().decode(), object_pairs_hook=_object)
    except OSError as error:
        raise LadingError("C800", f"the contract cannot be read: {error.strerror}", where=str(place)) from error
    except (ValueError, RecursionError) as error:
        raise LadingError("C800", f"this is not a JSON file: {error}", where=str(place)) from error
    contract, problems = decode(data)
    if problems or contract is None:
        raise LadingError.of([Diagnostic(p.code, p.message, f"{place}{p.where}", p.hint) for p in problems])
    return contract


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return result
