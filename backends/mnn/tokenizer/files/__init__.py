"""Files of tokenizers: writers, independent readers."""
