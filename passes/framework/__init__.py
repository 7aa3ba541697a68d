"""Passes, pipelines, the registry and the manager."""
