"""Analyses of graphs: dataflow, lifetimes, repeated blocks."""
