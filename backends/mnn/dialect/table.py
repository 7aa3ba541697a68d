"""All operators of MNN that the backend knows, and the tables that are read off their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.mnn.dialect import (
    activations,
    arithmetic,
    attention,
    constants,
    experts,
    linear,
    linear_attention,
    norm,
    reductions,
    rope,
    shapes,
    slices,
)
from backends.mnn.dialect.operator import MnnOperator
from backends.mnn.read.sizes import Ints
from backends.mnn.target.releases import Release

ROWS: tuple[MnnOperator, ...] = (
    *shapes.ROWS,
    *slices.ROWS,
    *constants.ROWS,
    *linear.ROWS,
    *experts.ROWS,
    *norm.ROWS,
    *rope.ROWS,
    *attention.ROWS,
    *linear_attention.ROWS,
    *arithmetic.ROWS,
    *reductions.ROWS,
    *activations.ROWS,
)

DEFINITIONS = tuple(row.definition for row in ROWS if row.definition is not None)
"""Rows for `ir.ops.registry.OPERATORS`."""

WRITTEN = {row.definition.name: row for row in ROWS if row.definition is not None and row.encode is not None}
"""How each operator of the IR is written, by its name there."""

READ = {row.type: row for row in ROWS if row.decode is not None}
"""How each operator of a file is read, by its type."""

FORM_OF = {row.definition.name: row.form for row in ROWS if row.definition is not None and row.form}
"""The fused form that an operator of the IR is."""

FORMS: dict[str, Callable[[Release, Mapping[str, Any]], bool]] = {
    row.form: row.reads for row in sorted(ROWS, key=lambda row: row.form) if row.form and row.reads is not None
}
"""Fused forms by the name that the pass ``fuse-mnn`` knows them by, and whether a release has them; each is read by the
releases that read its operators."""


def fused_forms(releases: Sequence[Release]) -> tuple[str, ...]:
    """The fused forms that all of some releases compute right."""
    return tuple(form for form, reads in FORMS.items() if all(reads(release, {}) for release in releases))


def evaluate(type: str, main: Mapping[str, Any], operands: Sequence[Ints]) -> Ints | None:
    """The result of an operator of a file on known integers; None when it is not one that shapes are made with."""
    row = READ.get(type)
    if row is None or row.on_sizes is None:
        return None
    try:
        return row.on_sizes(main, operands)
    except (IndexError, ZeroDivisionError, ValueError):
        return None
