"""Pipelines kept in TOML files, for those too long for a command line.

::

    [[pass]]
    name = "fold"
    options = { max-bytes = 4096 }

    [[pass]]
    name = "repeat"
    options = { max = 3 }

      [[pass.pass]]
      name = "cse"

Names may be registered pipelines. Relative paths in options are taken from the folder of the file.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from ir.base.diag import LadingError, suggest
from passes.framework.base import Pass
from passes.framework.options import Raw, options_of, read_text
from passes.framework.pipeline import Pipeline, RawOption, RawStep, Source, resolve
from passes.framework.registry import Registry

_KEYS = ("name", "options", "pass")


def load_toml(path: str | Path, registry: Registry) -> Pipeline:
    """The pipeline of a TOML file; LadingError P309 to P313, or P301 to P308 for what it says."""
    path = Path(path)
    text = read_text(path, "pipeline file")
    try:
        data = tomllib.loads(text)
    except ValueError as error:  # Numbers of too many digits are no TOMLDecodeError.
        raise LadingError("P309", f"not valid TOML: {error}", str(path)) from None
    except RecursionError:
        raise LadingError("P309", "values are nested too deep", str(path)) from None
    unknown = sorted(set(data) - {"pass"})
    if unknown:
        raise LadingError("P309", f"unknown key {unknown[0]!r}", str(path), "the file is a list of [[pass]] tables")
    items: list[Pass | Any] = []
    for step, place in _steps(data.get("pass", []), str(path)):
        items.extend(resolve((step,), Source("", place), registry).items)
    return Pipeline(tuple(items)).map(lambda one: _anchored(one, path.parent))


def _steps(tables: Any, place: str) -> list[tuple[RawStep, str]]:
    if not isinstance(tables, list):
        raise LadingError("P309", "'pass' must be a list of [[pass]] tables", place)
    return [
        (_step(table, f"{place}, pass {number}"), f"{place}, pass {number}")
        for number, table in enumerate(tables, start=1)
    ]


def _step(table: Any, place: str) -> RawStep:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise LadingError("P309", "a pass is a table with a name", place)
    unknown = [key for key in table if key not in _KEYS]
    if unknown:
        hint = suggest(unknown[0], _KEYS) or f"options go into the table options = {{ {unknown[0]} = ... }}"
        raise LadingError("P309", f"unknown key {unknown[0]!r}", place, hint)
    options = table.get("options", {})
    if not isinstance(options, dict):
        raise LadingError("P309", "options must be a table", place)
    name = table["name"].replace("_", "-")
    raw = tuple(
        RawOption(key.replace("-", "_"), _raw(value, f"{place}, {key}"), (0, 0)) for key, value in options.items()
    )
    if name != "repeat":
        if "pass" in table:
            raise LadingError("P309", f"only repeat has passes of its own, not {name}", place)
        return RawStep(name, (0, 0), raw)
    body = tuple(step for step, _ in _steps(table.get("pass", []), place))
    if not body:
        raise LadingError("P309", "repeat needs at least one [[pass.pass]] table", place)
    return RawStep(name, (0, 0), raw, body)


def _raw(value: Any, place: str) -> Raw:
    if isinstance(value, bool):
        return Raw("true" if value else "false")
    if isinstance(value, int | float):
        return Raw(repr(value))
    if isinstance(value, str):
        return Raw(value, quoted=True)
    if isinstance(value, list):
        return Raw(tuple(_raw(item, place) for item in value))
    raise LadingError("P309", f"a value must be a string, number, boolean or list, not {type(value).__name__}", place)


def _anchored(one: Pass, folder: Path) -> Pass:
    changed = {}
    for spec in options_of(type(one)).values():
        value = getattr(one, spec.name)
        if spec.kind != "path" or value is None or value == spec.default:
            continue
        changed[spec.name] = tuple(folder / item for item in value) if spec.many else folder / value
    return replace(one, **changed) if changed else one
