"""What a ladder is built of: a checkpoint, or an ONNX file with the folder of its tokenizer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ir.base.diag import LadingError

if TYPE_CHECKING:
    from ir.graph.graph import Graph

SUFFIX = ".onnx"


def is_file(model: str) -> bool:
    """True for a name of an ONNX file."""
    return model.lower().endswith(SUFFIX) and os.path.isfile(os.path.expanduser(model))


def tokenizer_of(path: Path, named: Path | None) -> Path:
    """The folder with the tokenizer of an ONNX file: the one that is named, else the one that lies beside it.

    Raises:
        LadingError: U923 there is none.
    """
    from frontends.onnx.beside import tokenizer_folder

    found = named or tokenizer_folder(path)
    if found is None:
        message = "rungs are measured on text, and no tokenizer lies beside the model"
        raise LadingError("U923", message, str(path), "name its folder with --tokenizer DIR")
    return found


def longest_window(path: Path) -> int | None:
    """The most tokens of a sequence whose numbers do not depend on how it is cut; None where nothing is known."""
    from ir.facts.model_card import ModelCard

    if path.suffix == SUFFIX:
        from frontends.onnx.beside import context_of

        return context_of(path)
    from frontends.checkpoint.load import load

    return ModelCard.of(load(path)).steady_context


def digest(path: Path) -> str:
    """SHA-256 (hex) of all that decides what the model computes."""
    from tools.matrix.cell import Source

    if path.suffix != SUFFIX:
        return Source(path).digest
    from hashlib import sha256

    from frontends.onnx.beside import described
    from frontends.onnx.load import load

    sources = described(path, load(path)).sources
    return sha256("".join(f"{name} {file.digest}\n" for name, file in sorted(sources.items())).encode()).hexdigest()


def float_graph(path: Path) -> Graph:
    """The float model that rungs are measured against: from token ids, or with the inputs that the runtime feeds."""
    if path.suffix != SUFFIX:
        from frontends.checkpoint.load import load as checkpoint

        return checkpoint(path)
    from frontends.onnx.load import load
    from passes.framework.context import PassContext
    from passes.framework.load import load as pipeline
    from passes.framework.manager import PassManager

    graph = load(path)
    PassManager(pipeline("lift-decoder,infer-types,discover-inputs")).run(graph, PassContext())
    return graph


__all__ = ["digest", "float_graph", "is_file", "longest_window", "tokenizer_of"]
