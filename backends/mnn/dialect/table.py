"""All operators of the domain ``mnn``."""

from __future__ import annotations

from backends.mnn.dialect import activations, operators, packed

DEFINITIONS = (*operators.DEFINITIONS, *packed.DEFINITIONS, *activations.DEFINITIONS)
"""Rows for `ir.ops.registry.OPERATORS`."""
