"""MNN graphs as graphs of the compiler."""
