"""The command ``reduce``."""
