"""GGUF files as checkpoints: configuration, tensor names and tokenizer of a model, from its one file."""
