"""What the converter wrote, read with our own reader and held against the graph: it reports success whatever it made."""
