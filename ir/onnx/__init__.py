"""Graphs as ONNX models in memory."""
