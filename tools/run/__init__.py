"""Talk to a compiled model on this machine."""
