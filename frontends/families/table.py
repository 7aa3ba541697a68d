"""All model families by ``model_type``: those of the source tree and those of plugins."""

from __future__ import annotations

from frontends.families.llama import ROWS, Family
from ir.base.plugins import rows_of
from ir.base.tables import Table


def _check(name: str, row: Family) -> None:
    if not isinstance(row, Family) or row.model_type != name:
        raise TypeError(f"it is not a frontends.families.llama.Family of the model_type {name!r}")


FAMILIES: Table[Family] = Table("family", {row.model_type: row for row in ROWS}, rows_of("families"), _check)
"""The rows by ``model_type``. Open to plugins."""
