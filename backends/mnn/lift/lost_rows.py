"""The choice of rows that a converter lost, or that tracing fixed at the last row, declared again.

Where the graph that was converted read ``logits_index`` and declared it nowhere, the slice in front of the logits reads
tensor number -1 (see `backends.mnn.doctor.lost`). What stood there is known: releases feed this choice. Where the slice
takes the last row whatever is asked for, it takes what is asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.mnn.doctor.rows import RowChoice, row_choice
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers

ROWS = "logits_index"


def lost_rows(subject: Subject) -> dict[str, Any] | None:
    """The slice that lost its choice of rows; None where there is none."""
    chosen = _own_choice(subject)
    return chosen.op if chosen is not None and chosen.index < 0 else None


def _own_choice(subject: Subject) -> RowChoice | None:
    """The slice in front of the logits that is not the runtime's, and whose choice is lost or the last row."""
    chosen = row_choice(subject)
    if chosen is None or ROWS in subject.names or chosen.op.get("type") != "StridedSlice":
        return None
    others = [index for place, index in enumerate(numbers(chosen.op.get("inputIndexes"))) if place != 1]
    return chosen if min(others) >= 0 and (chosen.index < 0 or chosen.fixed == -1) else None


def with_rows(subject: Subject) -> dict[str, Any]:
    """The graph of a model, in which a choice of rows that was lost, or fixed at the last one, is an input."""
    chosen = _own_choice(subject)
    if chosen is None:
        return subject.net
    op, place = chosen.op, len(subject.names)
    main = {"dims": np.array([1]), "dtype": "DT_INT32", "dformat": "NCHW"}
    declared = {"type": "Input", "name": ROWS, "main_type": "Input", "main": main, "outputIndexes": np.array([place])}
    first, _, *rest = numbers(op["inputIndexes"])
    mended = {**op, "inputIndexes": np.array([first, place, *rest])}
    ops = [declared, *(mended if item is op else item for item in subject.net["oplists"])]
    return {**subject.net, "oplists": ops, "tensorName": [*subject.names, ROWS]}


__all__ = ["lost_rows", "with_rows"]
