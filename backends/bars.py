"""How far a compiled model may be from the original, by the narrowest width of its weights."""

from __future__ import annotations

KL_BARS = {32: 1e-5, 16: 1e-3, 8: 0.02, 7: 0.04, 6: 0.08, 5: 0.2, 4: 0.6, 3: 3.0, 2: float("inf")}
"""Largest allowed mean KL divergence from the float model, by the narrowest width of a layer."""

ERROR_BARS = {32: 1e-3, 16: 1e-2, 8: 0.1, 7: 0.15, 6: 0.2, 5: 0.3, 4: 0.6, 3: 1.0, 2: float("inf")}
"""Largest allowed root mean square of what an output is off, relative to that of the output itself, likewise."""
