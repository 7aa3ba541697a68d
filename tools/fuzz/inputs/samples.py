"""Sound files to damage, made once for each search: checkpoints and model directories."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_SMALL = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
}


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that appears complete."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            part = Path(made) / "part"
            make(part)
            os.rename(part, folder)
    return folder


def checkpoint(samples: Path, rng: random.Random) -> Path:
    """A small checkpoint of a random family, in one file or in two."""
    from tools.matrix.random_checkpoints import FAMILIES, make_checkpoint

    family, shards = rng.choice(sorted(FAMILIES)), rng.choice([1, 1, 2])
    extra = {"head_dim": 8} if family == "qwen3" else {}

    def make(folder: Path) -> None:
        make_checkpoint(folder, family, shards=shards, tie_word_embeddings=family == "qwen2", **{**_SMALL, **extra})

    return _once(samples / f"{family}-{shards}", make)


def model_directory(samples: Path, rng: random.Random) -> Path:
    """A small MNN model directory of one of a few precisions."""
    from tools.compile.job import Request, compile_model

    pipeline = rng.choice(["default", "int8", "fp16"])
    source = checkpoint(samples, random.Random(1))

    def make(folder: Path) -> None:
        compile_model(Request(str(source), folder, pipeline=pipeline, verify="none"))

    return _once(samples / f"mnn-{pipeline}", make)


def copy_of(folder: Path, case: Path) -> Path:
    """A copy of a sample that a case may change."""
    made = case / folder.name
    shutil.copytree(folder, made)
    return made


__all__ = ["checkpoint", "copy_of", "model_directory"]
