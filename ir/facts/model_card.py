"""What a frontend knows about the model that a graph computes, beyond the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from ir.base.diag import Diagnostic
from ir.graph.graph import Fact, Graph


@dataclass(frozen=True)
class SourceFile:
    """One file that a model was read from: its size, and a SHA-256 (hex) of its content or of its header alone."""

    bytes: int
    digest: str
    digest_of: Literal["content", "header"] = "content"


@dataclass(frozen=True)
class RopeCard:
    """The rotary embedding of a model.

    Attributes:
        kind, theta, width, factor: as the configuration says.
        attention_factor: multiplier of sines and cosines.
        steady: longest sequence for which the frequencies do not change with the length; None when they never do.
        layers: for each layer whether it turns queries and keys.
    """

    kind: str
    theta: float
    width: int
    factor: float | None
    attention_factor: float
    steady: int | None = None
    layers: tuple[bool, ...] = ()


@dataclass(frozen=True)
class AdapterCard:
    """An adapter that was merged into a model.

    Attributes:
        name: its folder or repository, as it was given.
        folder: where its files are.
        weight: what its changes were multiplied by.
        base: the model that it says it was trained on; None where it does not say.
        rank: of its factors, where nothing else is said of a module.
        tensors: how many tensors of the model it changed.
        digests: SHA-256 (hex) of each of its files.
    """

    name: str
    folder: str
    weight: float
    base: str | None
    rank: int
    tensors: int
    digests: Mapping[str, str]


@dataclass(frozen=True)
class ModelCard(Fact):
    """What is known of a model; whatever its frontend could not tell is None or empty.

    Attributes:
        title: what the model is called.
        family, model_type: its family and the ``model_type`` of its configuration.
        hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, vocab_size: its sizes.
        max_position: longest sequence that the configuration names.
        context: longest sequence that the model computes right, in tokens.
        parameters: weights, tied ones counted once.
        tied: the output projection is the embedding.
        windows: for each layer the width of its attention window; None where it sees all earlier tokens.
        rope: its rotary embedding.
        dtypes: element types of the stored weights.
        sources: the files it was read from, by name.
        config_digest: SHA-256 (hex) of its configuration file.
        folder: where the files that belong to it, such as those of its tokenizer, are.
        adapters: what was merged into its weights, in order.
        sampling: its sampling defaults, as in ``generation_config.json``.
        warnings: what its frontend left out of account.
        unread: keys of its configuration that nobody read, by weight: ``numbers``, ``training``, ``bookkeeping`` and
            ``unknown``.
    """

    name: ClassVar[str] = "model-card"

    title: str = ""
    family: str | None = None
    model_type: str | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    layers: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    vocab_size: int | None = None
    max_position: int | None = None
    context: int | None = None
    parameters: int | None = None
    tied: bool | None = None
    windows: tuple[int | None, ...] = ()
    rope: RopeCard | None = None
    dtypes: tuple[str, ...] = ()
    sources: Mapping[str, SourceFile] = field(default_factory=dict)
    config_digest: str | None = None
    folder: str | None = None
    adapters: tuple[AdapterCard, ...] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Diagnostic, ...] = ()
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph) -> ModelCard:
        """The card of a graph; an empty one where no frontend left any."""
        found = graph.facts.get(cls.name)
        return found if isinstance(found, ModelCard) else cls(title=graph.name)

    @property
    def steady_context(self) -> int | None:
        """Longest sequence whose numbers do not depend on how it is cut into calls; None where it is not known."""
        known = [size for size in (self.context, self.rope.steady if self.rope is not None else None) if size]
        return min(known, default=None)

    def to_data(self) -> dict[str, Any]:
        """JSON-able form, without what is not known."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        data = {key: value for key, value in found.items() if value is not None and value not in ("", (), {})}
        if self.rope is not None:
            data["rope"] = asdict(self.rope)
        if self.sources:
            data["sources"] = {key: asdict(item) for key, item in self.sources.items()}
        if self.adapters:
            data["adapters"] = [asdict(item) for item in self.adapters]
        if self.warnings:
            data["warnings"] = [item.as_dict() for item in self.warnings]
        return data

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> ModelCard:
        """Inverse of `to_data`."""
        found = dict(data)
        for key in ("windows", "dtypes"):
            found[key] = tuple(found.get(key, ()))
        if "rope" in found:
            rope = dict(found["rope"])
            found["rope"] = RopeCard(**{**rope, "layers": tuple(rope.get("layers", ()))})
        found["sources"] = {key: SourceFile(**item) for key, item in found.get("sources", {}).items()}
        found["adapters"] = tuple(AdapterCard(**item) for item in found.get("adapters", ()))
        found["warnings"] = tuple(Diagnostic(**item) for item in found.get("warnings", ()))
        found["unread"] = {key: tuple(names) for key, names in found.get("unread", {}).items()}
        return cls(**found)

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Nothing of a card speaks of values of the graph."""
        return []


__all__ = ["AdapterCard", "ModelCard", "RopeCard", "SourceFile"]
