"""Operators that move elements, choose them, or multiply matrices; control flow."""

from __future__ import annotations

from backends.mnn.modules.rewrites.types import Table

REWRITES: Table = {}
"""Rewrites by operator."""
