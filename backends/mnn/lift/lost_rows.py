"""The choice of rows that a converter lost, declared again.

Where the graph that was converted read ``logits_index`` and declared it nowhere, the slice in front of the logits reads
tensor number -1 (see `backends.mnn.doctor.lost`). What stood there is known: releases feed this choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.mnn.doctor.rows import row_choice
from backends.mnn.read.model_folder import Subject
from backends.mnn.read.net_file import numbers

ROWS = "logits_index"


def lost_rows(subject: Subject) -> dict[str, Any] | None:
    """The slice that lost its choice of rows; None where there is none."""
    chosen = row_choice(subject)
    if chosen is None or chosen.index >= 0 or ROWS in subject.names:
        return None
    operands = numbers(chosen.op.get("inputIndexes"))
    whole = all(index >= 0 for place, index in enumerate(operands) if place != 1)
    return chosen.op if whole and chosen.op.get("type") == "StridedSlice" else None


def with_rows(subject: Subject) -> dict[str, Any]:
    """The graph of a model, in which a lost choice of rows is an input."""
    op = lost_rows(subject)
    if op is None:
        return subject.net
    place = len(subject.names)
    main = {"dims": np.array([1]), "dtype": "DT_INT32", "dformat": "NCHW"}
    declared = {"type": "Input", "name": ROWS, "main_type": "Input", "main": main, "outputIndexes": np.array([place])}
    first, _, *rest = numbers(op["inputIndexes"])
    mended = {**op, "inputIndexes": np.array([first, place, *rest])}
    ops = [declared, *(mended if item is op else item for item in subject.net["oplists"])]
    return {**subject.net, "oplists": ops, "tensorName": [*subject.names, ROWS]}


__all__ = ["lost_rows", "with_rows"]
