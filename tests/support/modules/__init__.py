"""Helpers for tests of MNN modules."""
