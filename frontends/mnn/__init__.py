"""MNN graphs as graphs."""
