"""Codes of everything that can be wrong when a model is compiled to ONNX."""

from __future__ import annotations

CODES = {
    "B750": "The only target of ONNX models is the installed release of onnxruntime, on which they are run.",
    "B751": "The pipeline gives the graph the inputs of another runtime. Choose one for ONNX, such as onnx or onnx-fp32.",
    "V710": "onnxruntime gives other numbers for the written file than the graph that was written means.",
    "V711": "Quantization changes what the model gives more than is allowed for the chosen widths.",
}
