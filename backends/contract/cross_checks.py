"""References between the parts of a contract, which a schema cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from reprlib import repr as short_repr
from typing import Any

from backends.contract.codec import CONTRACT_FILE, escape


def disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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
    generation = data["generation"] or {"samplers": (), "lost": ()}
    places += [
        (f"/generation/{part}/{index}/releases", row["releases"])
        for part in ("samplers", "lost")
        for index, row in enumerate(generation[part])
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
