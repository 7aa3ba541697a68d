"""Passes that make one operator of several where that may round otherwise."""
