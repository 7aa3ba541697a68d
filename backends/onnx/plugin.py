"""The row by which ONNX, as something to compile for, is known to the compiler; imported when it is used."""

from __future__ import annotations

from ir.base.plugins import Plugin

PLUGIN = Plugin(
    pipelines={
        "onnx": "newest-opset,canonicalize,spell-linears,assign-precision{bits=8},insert-qdq",
        "onnx-int4": "newest-opset,canonicalize,spell-linears,assign-precision,insert-qdq",
        "onnx-fp16": "newest-opset,canonicalize,spell-linears,assign-precision{bits=16 logits-bits=16},insert-qdq",
        "onnx-fp32": "canonicalize",
    },
    targets={"onnx": "backends.onnx.target:target"},
    backends={"onnx": "backends.onnx.backend:OnnxBackend"},
    codes={"onnx": "backends.onnx.codes:CODES"},
)
