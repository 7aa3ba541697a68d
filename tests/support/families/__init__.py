"""Tiny checkpoints of many model families with the logits that an implementation not ours computes from the same files.

`cases` says which, `build` makes a model with weights that let every feature matter, `checkpoints` writes it as files in
the spellings that people have, `plain` computes families that `transformers` has no code for, `judge` compares what is
compiled with the goldens, `mutations` and `keys` say what the goldens notice.
"""
