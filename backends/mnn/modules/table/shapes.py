"""Operators that move elements, choose them, or multiply matrices; control flow."""

from __future__ import annotations

from backends.mnn.modules.table.row import HELD, Right

ROWS = (Right("Transpose", "test_transpose_all_permutations", HELD), Right("Shape", "test_shape", HELD))
"""What is right."""
