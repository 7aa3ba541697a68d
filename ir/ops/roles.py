"""What operators are to a reader of a picture: linear layers, attention, norms and so on, each kind in its colour.

The table holds operators of ONNX, and widely used ones of domains whose definitions nobody here has; others say it in
their own definition, `ir.ops.registry.OpDef.role`.
"""

from __future__ import annotations

ROLES: dict[str, tuple[str, ...]] = {
    "linear": ("MatMul", "Gemm", "Conv", "MatMulInteger", "Linear", "ConvTranspose", "Einsum"),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding", "Softmax"),
    "norm": ("RMSNormalization", "LayerNormalization", "InstanceNormalization", "BatchNormalization",
             "GroupNormalization", "SimplifiedLayerNormalization", "LpNormalization"),
    "layout": ("Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Expand", "Gather", "Shape",
               "Flatten", "Pad", "Tile", "Identity", "GatherND", "Range", "Size"),
    "storage": ("Cast", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    "control": ("If", "Loop", "Scan"),
}  # fmt: skip
"""Role to operator names; everything else is ``math``."""

ROLE_OF = {op: role for role, ops in ROLES.items() for op in ops}

__all__ = ["ROLES", "ROLE_OF"]
