"""Everything that is MNN: dialect, lowering, releases, writing, reading, running, doctor. `plugin` is its row."""
