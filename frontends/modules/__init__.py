"""Parts of language models: what they read of a configuration, and the graph they make."""
