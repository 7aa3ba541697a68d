"""Integers of few bits, and without a sign, as those that runtimes compute with."""
