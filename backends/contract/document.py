"""Reading, writing and checking a contract as a file, and the published JSON Schema."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, get_type_hints

from backends.contract.codec import Record, codec_of, escape, record_codec
from backends.contract.records import CONTRACT_FILE, CONTRACT_VERSION, Contract
from ir.base.cache import write_whole
from ir.base.diag import Diagnostic, LadingError

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


def decode(data: Any) -> tuple[Contract | None, list[Diagnostic]]:
    """The contract of parsed JSON, or every problem of it; see `validate`."""
    version = data.get("contract_version") if isinstance(data, dict) else None
    if isinstance(version, str) and version != CONTRACT_VERSION:
        message = f"contract version {short_repr(version)} is not known, only {CONTRACT_VERSION}"
        return None, [Diagnostic("C803", message, "#/contract_version", "read it with the release that wrote it")]
    problems: list[Diagnostic] = []
    contract = record_codec(Contract).read(data, "#", problems)
    return contract, problems or [Diagnostic("C806", text, f"#{at}") for at, text in _disagreements(data)]


def _disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pointer and message for each reference between parts that does not hold."""
    yield from _signature_disagreements(data["signature"])
    yield from _file_disagreements(data)
    yield from _release_disagreements(data)


def _repeated(rows: Iterable[Mapping[str, Any]], key: str, at: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for index, row in enumerate(rows):
        if row[key] in seen:
            yield f"{at}/{index}/{key}", f"{row[key]!r} is there twice"
        seen.add(row[key])


def _signature_disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dims, at = data["dims"], "/signature"
    for side in ("inputs", "outputs"):
        yield from _repeated(data[side], "name", f"{at}/{side}")
        for index, port in enumerate(data[side]):
            for number, form in enumerate(port["shapes"]):
                for axis, size in enumerate(form["shape"]):
                    if isinstance(size, str) and size not in dims:
                        yield (
                            f"{at}/{side}/{index}/shapes/{number}/shape/{axis}",
                            f"dimension {size!r} is not in dims",
                        )
    for index, port in enumerate(data["inputs"]):
        yield from _value_disagreements(port, f"{at}/inputs/{index}")
    for name, row in dims.items():
        if row["high"] is not None and row["high"] < row["low"]:
            yield f"{at}/dims/{escape(name)}", f"high {row['high']} is below low {row['low']}"
        for part in row["sum_of"]:
            if part not in dims or part == name:
                yield f"{at}/dims/{escape(name)}/sum_of", f"{part!r} is not another dimension"
    if data["state"] is not None and data["state"]["past"] not in dims:
        yield f"{at}/state/past", f"dimension {data['state']['past']!r} is not in dims"


def _value_disagreements(port: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    values, default, integer = port["values"], port["default"], port["dtype"][0] in "iu"
    if values is not None and not integer:
        yield f"{at}/values", f"a range of values is for integers, not for {port['dtype']}"
    low, high = (
        (-math.inf, math.inf)
        if values is None
        else (
            -math.inf if values["min"] is None else values["min"],
            math.inf if values["max"] is None else values["max"],
        )
    )
    if high < low:
        yield f"{at}/values", f"max {high} is below min {low}"
    if default is None:
        return
    if isinstance(default, bool) is not (port["dtype"] == "bool") or (integer and default != int(default)):
        yield f"{at}/default", f"{short_repr(default)} is not of type {port['dtype']}"
    elif not low <= default <= high:
        yield f"{at}/default", f"{default} is not in {low}..{high}"


def _file_disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sizes = {row["path"]: row["bytes"] for row in data["files"]}
    names = {row["name"] for row in data["weights"]}
    yield from _repeated(data["files"], "path", "/files")
    yield from _repeated(data["sources"], "file", "/sources")
    for index, row in enumerate(data["files"]):
        if row["path"] == CONTRACT_FILE:
            yield f"/files/{index}/path", "the contract cannot list itself"
    for index, row in enumerate(data["weights"]):
        if row["file"] not in sizes:
            yield f"/weights/{index}/file", f"{row['file']!r} is not in files"
        elif row["offset"] + row["bytes"] > sizes[row["file"]]:
            end, size = row["offset"] + row["bytes"], sizes[row["file"]]
            yield f"/weights/{index}/bytes", f"the weight ends at byte {end} of {row['file']!r}, which has {size}"
        if row["shared_with"] is not None and row["shared_with"] not in names:
            yield f"/weights/{index}/shared_with", f"{row['shared_with']!r} is not in weights"
    for index, row in enumerate((data["tokenizer"] or {"files": ()})["files"]):
        if row["file"] not in sizes:
            yield f"/tokenizer/files/{index}/file", f"{row['file']!r} is not in files"


def _release_disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    promised, tokenizer = data["target"]["releases"], data["tokenizer"] or {"files": (), "inexact": ()}
    places = [
        (f"/tokenizer/{part}/{index}/releases", row["releases"])
        for part in ("files", "inexact")
        for index, row in enumerate(tokenizer[part])
    ]
    places += [
        (f"/signature/{side}/{index}/shapes/{number}/releases", form["releases"])
        for side in ("inputs", "outputs")
        for index, port in enumerate(data["signature"][side])
        for number, form in enumerate(port["shapes"])
    ]
    for at, releases in places:
        for release in releases:
            if release not in promised:
                yield at, f"release {release} is not promised by the target"
    for index, port in enumerate(data["signature"]["inputs"]):
        served = {release for form in port["shapes"] for release in form["releases"] or promised}
        for release in promised:
            if release not in served:
                yield f"/signature/inputs/{index}/shapes", f"there is no form for release {release}"
    for index, row in enumerate(tokenizer["inexact"]):
        if (row["differing"] or 0) > (row["of"] or 0):
            yield f"/tokenizer/inexact/{index}/differing", f"{row['differing']} of {row['of']} strings"


def dumps(contract: Contract) -> str:
    """The canonical text: fields in order of declaration, short parts on one line, a final line break.

    ValueError when `read` would refuse it, which is a mistake of the program that built the contract.
    """
    checked, problems = decode(contract.to_json())
    if problems:
        raise ValueError("\n".join(str(problem) for problem in problems))
    return _layout(checked.to_json(), 0) + "\n"  # type: ignore[union-attr]


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
    if problems:
        raise LadingError.of([Diagnostic(p.code, p.message, f"{place}{p.where}", p.hint) for p in problems])
    return contract  # type: ignore[return-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return result
