"""Convolution, pooling, resizing, sampling, normalisation, recurrence and signals."""

from __future__ import annotations

from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.rewrites.vision import (
    convolution,
    norms,
    pooling,
    recurrent,
    resizing,
    sampling,
    signals,
)

REWRITES: Table = {
    **convolution.REWRITES,
    **norms.REWRITES,
    **pooling.REWRITES,
    **recurrent.REWRITES,
    **resizing.REWRITES,
    **sampling.REWRITES,
    **signals.REWRITES,
}
"""Rewrites by operator."""
