"""Comparison of what MNN computes with the original."""
