"""The row by which ONNX, as a form of output, is known to the compiler."""

from __future__ import annotations

from ir.base.plugins import Plugin

PLUGIN = Plugin()
