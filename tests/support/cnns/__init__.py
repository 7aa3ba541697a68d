"""Networks that are no language models."""
