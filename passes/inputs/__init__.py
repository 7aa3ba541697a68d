"""Reconciliation of what a graph needs with what a runtime feeds."""
