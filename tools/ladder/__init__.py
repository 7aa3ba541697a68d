"""The command ``ladder``."""
