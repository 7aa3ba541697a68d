"""Passes that turn a graph into one that MNN can run."""
