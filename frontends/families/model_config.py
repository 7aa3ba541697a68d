"""A checked configuration: the row of a family with values in the place of its specs, and one record for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from frontends.families.scheme import Family
from frontends.parts.builder import Part
from frontends.parts.rope import Rope
from ir.base.diag import Diagnostic


@dataclass(frozen=True)
class LayerConfig:
    """One layer: its parts with values, its window in tokens (None: all earlier ones) and the name of its rope."""

    mixer: Part
    feed: Part
    window: int | None = None
    rope: str | None = "main"


@dataclass(frozen=True)
class ModelConfig:
    """A checked model configuration.

    Attributes:
        path: the file, for messages.
        digest: SHA-256 of the file's bytes, hexadecimal; empty when there was no file.
        model_type: of the language model.
        family: its row, with values; its parts are those of the layers.
        layers: one record for each decoder layer.
        ropes: checked ropes by name and width of the heads.
        tied: the file says that the output projection is the embedding.
        wrapper: ``model_type`` of the model of several towers that this one is the language model of; empty for none.
        warnings: keys of the file that were left out of account.
        unread: every key of the file that was not read, by `frontends.checkpoint.config_keys.Weight`.
    """

    path: str
    digest: str
    model_type: str
    family: Family
    vocab_size: int
    hidden_size: int
    max_position: int
    tied: bool
    layers: tuple[LayerConfig, ...]
    ropes: Mapping[tuple[str, int], Rope]
    wrapper: str = ""
    warnings: tuple[Diagnostic, ...] = ()
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Longest sequence the model is meant for."""
        if self.family.positions or not self.ropes:
            return self.max_position
        return max(rope.context for rope in self.ropes.values())

    @property
    def rope(self) -> Rope | None:
        """The rope of the first layer that has one and sees furthest."""
        for wide in (True, False):
            for layer in self.layers:
                if layer.rope is not None and (layer.window is None) is wide:
                    return self.ropes[layer.rope, layer.mixer.rope_width]  # type: ignore[attr-defined]
        return None


__all__ = ["LayerConfig", "ModelConfig"]
