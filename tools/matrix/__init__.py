"""The command ``matrix``."""
