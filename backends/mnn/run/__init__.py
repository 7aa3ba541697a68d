"""MNN's native code, in child processes."""
