"""Bringing decoders that others exported into the form of the checkpoint frontend: cut, evaluate, fit."""
