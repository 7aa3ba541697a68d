"""Chat templates: what each release makes of them."""
