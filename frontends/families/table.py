"""All model families by ``model_type``, and the models of several towers that hold one."""

from __future__ import annotations

from frontends.families.rows import (
    cohere,
    deepseek,
    gemma,
    glm,
    gpt,
    llama,
    mixtures,
    olmo,
    own_code,
    phi,
    qwen,
    recurrent,
    wrappers,
)
from frontends.families.scheme import Family, Wrapper
from ir.base.plugins import rows_of
from ir.base.tables import Table

ROWS: tuple[Family, ...] = tuple(
    row
    for room in (qwen, llama, gemma, glm, phi, olmo, cohere, gpt, mixtures, deepseek, recurrent, own_code)
    for row in room.ROWS
)


def _check(name: str, row: Family) -> None:
    if not isinstance(row, Family) or name not in row.types:
        raise TypeError(f"it is not a frontends.families.scheme.Family with {name!r} among its types")


FAMILIES: Table[Family] = Table(
    "family", {name: row for row in ROWS for name in row.types}, rows_of("families"), _check
)
"""The rows by ``model_type``. Open to plugins."""

WRAPPERS: dict[str, Wrapper] = {name: row for row in wrappers.ROWS for name in row.types}
"""Models whose configuration holds that of a language model, by ``model_type``."""

__all__ = ["FAMILIES", "ROWS", "WRAPPERS"]
