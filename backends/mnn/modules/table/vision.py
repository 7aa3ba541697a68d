"""Convolution, pooling, resizing, normalisation, recurrence and signals."""

from __future__ import annotations

from backends.mnn.modules.table.row import FLOAT, Right

ROWS = (Right("Conv", "test_conv_with_strides_padding", FLOAT, range(4, 5)),)
"""What is right."""
