"""Parts of language models: what each reads of a configuration, the tensors it is stored in, and the graph it makes."""
