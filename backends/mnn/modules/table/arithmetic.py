"""Element-wise operators, comparisons, logic, conversions and reductions."""

from __future__ import annotations

from backends.mnn.modules.table.row import FLOAT, HELD, NUMBER, Right

ROWS = (
    Right("Identity", "test_identity", HELD),
    *(Right(op, f"test_{op.lower()}", NUMBER) for op in ("Add", "Mul", "Sub")),
    *(Right(op, f"test_{op.lower()}", FLOAT) for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Sqrt")),
    Right("Greater", "test_greater", NUMBER | HELD),
)
"""What is right."""
