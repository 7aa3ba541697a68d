"""What ``--passes`` accepts, as a pipeline: text, the name of a pipeline, or a TOML file."""

from __future__ import annotations

from passes.framework.options import WORD
from passes.framework.pipeline import Pipeline, Source, read_steps, resolve
from passes.framework.registry import Registry, default_registry


def parse(text: str, registry: Registry | None = None) -> Pipeline:
    """The pipeline of a text; LadingError P300 to P308 with the fault underlined."""
    source = Source(text)
    return resolve(read_steps(source), source, registry or default_registry())


def load(text: str, registry: Registry | None = None) -> Pipeline:
    """What ``--passes`` accepts: pipeline text, the name of a pipeline, or the path of a ``.toml`` file."""
    stripped = text.strip()
    if stripped.endswith(".toml") and WORD.fullmatch(stripped.replace(" ", "")):
        from passes.framework.pipeline_toml import load_toml

        return load_toml(stripped, registry or default_registry())
    return parse(text, registry)
