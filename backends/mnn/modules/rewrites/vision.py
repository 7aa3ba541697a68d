"""Convolution, pooling, resizing, normalisation, recurrence and signals."""

from __future__ import annotations

from backends.mnn.modules.rewrites.types import Table

REWRITES: Table = {}
"""Rewrites by operator."""
