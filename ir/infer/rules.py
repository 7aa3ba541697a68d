"""All inference rules: the modules imported here fill the tables of `ir.infer.rule_table`."""

from __future__ import annotations

from ir.infer import by_onnx, control_flow, numeric, shapes, values, windows
from ir.infer.rule_table import RULES, rule_of, value_rule_of

FILLED_BY = (numeric, shapes, control_flow, values, windows, by_onnx)
"""Modules with rules of ONNX operators."""

__all__ = ["FILLED_BY", "RULES", "rule_of", "value_rule_of"]
