"""The command ``compile``."""
