"""Decoders of many families in the canonical form, and what the runtime makes of them."""
