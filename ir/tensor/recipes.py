"""The table of recipes: how `ir.text` and workers rebuild a derived tensor from what `Tensor.recipe` gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ir.base.plugins import rows_of
from ir.base.tables import Table

Recipe = Callable[..., Any]
"""Rebuilds a tensor from the arguments that `ir.tensor.base.Tensor.recipe` gives."""

RECIPES: Table[Recipe] = Table(
    "tensor recipe",
    {
        "inline": "ir.tensor.inline:rebuild_inline",
        "file": "ir.tensor.files:rebuild_file",
        "supposed": "ir.tensor.supposed:rebuild_supposed",
        "transposed": "ir.tensor.rearranged:transposed",
        "row_slice": "ir.tensor.rearranged:row_slice",
        "column_slice": "ir.tensor.rearranged:column_slice",
        "row_concat": "ir.tensor.rearranged:row_concat",
        "row_gather": "ir.tensor.rearranged:row_gather",
        "groups_of": "ir.tensor.rearranged:groups_of",
        "column_gather": "ir.tensor.rearranged:column_gather",
        "swapped": "ir.tensor.rearranged:swapped",
        "reshaped": "ir.tensor.rearranged:reshaped",
        "unpacked": "ir.tensor.packed:unpacked",
        "code_rows": "ir.tensor.packed:code_rows",
        "bit_codes": "ir.tensor.packed:bit_codes",
        "looked_up": "ir.tensor.packed:looked_up",
        "cast": "ir.tensor.elementwise:cast",
        "scaled": "ir.tensor.elementwise:scaled",
        "shifted": "ir.tensor.elementwise:shifted",
        "multiplied": "ir.tensor.elementwise:multiplied",
        "rotated": "ir.tensor.rotated:rotated",
        "low_rank": "ir.tensor.low_rank:low_rank",
        "row_lengths": "ir.tensor.low_rank:row_lengths",
        "bf16_parts": "ir.tensor.bf16_parts:bf16_parts",
        "stored_codes": "ir.quant.stored_codes:stored_codes",
        "given_codes": "ir.quant.stored_codes:given_codes",
        "signed_codes": "ir.quant.coded:signed_codes",
        "wide_codes": "ir.quant.coded:wide_codes",
        "decoded": "ir.quant.coded:decoded",
        "repeated": "ir.quant.coded:repeated",
        "rounded_codes": "ir.quant.coded:rounded_codes",
        "ggml_blocks": "ir.quant.ggml_blocks:ggml_blocks",
        "ggml_part": "ir.quant.ggml_blocks:ggml_part",
        "quantized_codes": "ir.quant.weight:rebuild_codes",
        "quantized_scale": "ir.quant.weight:rebuild_scale",
        "quantized_zero_point": "ir.quant.weight:rebuild_zero_point",
        "quantized_dequantized": "ir.quant.weight:rebuild_dequantized",
    },
    rows_of("recipes"),
)
"""Recipes by name. Open to plugins."""

__all__ = ["RECIPES", "Recipe"]
