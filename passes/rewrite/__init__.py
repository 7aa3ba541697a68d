"""The rewrite engine: patterns, rules and the driver that applies them."""
