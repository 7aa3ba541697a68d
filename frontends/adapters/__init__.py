"""Adapters of the library peft, merged into the weights of their base, which stay lazy."""
