"""Helpers for operators that onnxruntime and exporters add to ONNX's."""
