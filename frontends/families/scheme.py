"""Model families as data: what a decoder of each ``model_type`` is made of, and how its checkpoint names things.

The scheme in five sentences. (1) Where a configuration says a value is a *spec* (`frontends.configuration.specs`). (2) A
layer is a list of two branches, a mixer and a feed-forward part, each with a norm before it, after it, or both; a parallel
block has one input for both. (3) A *part* is a file of `frontends.parts`. (4) Each layer has a *kind*, by a rule: a list in
the file, a period, a first layer; the row says for each kind which mixer, window and rope it has, and another rule says
which layers have experts. (5) How several matrices share one stored tensor is a word (`frontends.parts.fused`).

The configuration reader and the graph builder are written against these fields alone; nothing below the table of rows
knows a model's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from frontends.configuration.specs import Setting, flag, number, numbers, size
from frontends.parts.builder import Part
from frontends.parts.feed_forward import Glu
from frontends.parts.norms import Norm
from frontends.parts.softmax import Softmax

FULL, SLIDING = "full_attention", "sliding_attention"
"""The kinds of layers that configurations call so."""

LONGEST = 1 << 31
"""Upper bound of a sequence length: positions are 32-bit integers in every runtime."""


@dataclass(frozen=True)
class Kinds:
    """The kind of each layer: by a list, else by a period, else by a first layer, else all alike.

    Attributes:
        listed: key of a list with a name for each layer.
        names: kinds by the names in that list, where they are called otherwise.
        period: the last layer of each period is of the kind `hit`, the others of the kind `miss`; None for no period.
        until: layers from this one on are of the kind `hit`, whatever the period says.
        after: layers from this one on are of the kind `SLIDING`, those before it `FULL`.
            A period of 0 makes sense without `only_if` alone.
        only_if: without it all layers are of the kind `otherwise`, whatever else the file says; a list of layers counts
            all the same where `otherwise` is `FULL`.
    """

    listed: str = ""
    names: Mapping[Any, str] = field(default_factory=dict)
    period: Setting = size(None, least=0, most=10_000, optional=True)
    hit: str = FULL
    miss: str = SLIDING
    until: Setting = size(10_000, least=0, most=10_000)
    after: Setting = size(10_000, least=0, most=10_000)
    only_if: Setting = flag(True)
    otherwise: str = FULL


@dataclass(frozen=True)
class Kind:
    """What layers of one kind have.

    Attributes:
        mixer: key of `Family.mixers`.
        window: tokens that each token sees, itself included; None for all earlier ones.
        rope: key of `Family.ropes`; None for layers that turn nothing.
    """

    mixer: str = "main"
    window: Setting = size(None, most=LONGEST, optional=True)
    rope: str | None = "main"


@dataclass(frozen=True)
class Sparse:
    """Which layers have experts: from `first` to `last` every one whose number, counted from one, `step` divides, but those
    of `dense`; a `last` of -1 or None is the last layer."""

    first: Setting = size(0, least=0, most=10_000)
    last: Setting = size(None, least=-1, most=10_000, optional=True)
    step: Setting = size(1, most=10_000)
    dense: Setting = numbers(("mlp_only_layers", None), "a list of layers", optional=True)


@dataclass(frozen=True)
class RopeRule:
    """Where the record of a rope stands.

    Attributes:
        theta: base of the frequencies where the record names none; the default of the configuration class after that.
        partial: share of each head that is turned; None for families that turn all of it.
        scaled: a record for the whole model is that of this rope; without it this rope has no stretch.
        alpha: a ``dynamic`` rope with ``alpha`` is stretched by that number, whatever the length.
        names: kinds by other names for them.
    """

    theta: Setting = number(("rope_theta", None), 1e-18, 1e18, optional=True)
    partial: Setting = number(None, 0.0, 1.0, optional=True)
    scaled: bool = True
    alpha: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        types: values of ``model_type`` in ``config.json``.
        mixers: by name; "main" for families with one.
        ffn: feed-forward part of layers without experts.
        experts: that of layers with them; None for families without.
        sparse: which layers have experts.
        kinds, of_kind: the kind of each layer, and what layers of each kind have.
        norm: the norm of the layers and of the final norm.
        attn_in, attn_out, mlp_in, mlp_out: names of the norms before and after the two branches of a layer; empty for
            none, several where the first that is stored counts.
        parallel: both branches see the same input and are added at once.
        mlp_in_parallel: that of a parallel block, where it is not `mlp_in`; empty where both branches share `attn_in`.
        embed, layers, final: embedding, list of layers and final norm, relative to whatever prefix a checkpoint has.
        head: output projection, found by this name anywhere.
        head_bias: it has a bias.
        positions: tensor of learned positions and the row of the first one; empty for none.
        transposed: linear weights are stored [in, out].
        tied: the output projection is the embedding.
        vocab_size, hidden_size, layer_count, max_position: sizes of the model.
        embed_scale, residual, logits: multipliers of the embedding, of each branch before it is added, and of the logits.
        logit_cap: the logits become ``cap * tanh(logits / cap)``.
        ropes: by name; "main" for families with one.
        fixed: keys of which only these values are computed as the row says; any other is refused.
        unread: keys that no part reads and the reference implementation does not either.
        like: types whose configuration has the class of another type.
        defaults: values of absent keys for types without a class in ``transformers``.
        aliases: other spellings of keys for such types.
        ignore: regular expressions of stored tensors that the computation does not need, matched from the start of the
            name after the prefix or of the whole name.
        extra_layers: layers beyond the number of layers may be stored and are left out.
    """

    types: tuple[str, ...]
    mixers: Mapping[str, Part] = field(default_factory=lambda: {"main": Softmax()})
    ffn: Part = field(default_factory=Glu)
    experts: Part | None = None
    sparse: Sparse = Sparse()
    kinds: Kinds = Kinds()
    of_kind: Mapping[str, Kind] = field(default_factory=lambda: {FULL: Kind()})
    norm: Norm = Norm()
    attn_in: str | tuple[str, ...] = "input_layernorm"
    attn_out: str = ""
    mlp_in: str | tuple[str, ...] = "post_attention_layernorm"
    mlp_out: str = ""
    parallel: Setting = flag(False)
    mlp_in_parallel: str | tuple[str, ...] | None = None
    embed: str = "embed_tokens"
    layers: str = "layers"
    final: str = "norm"
    head: str = "lm_head"
    head_bias: Setting = flag(False)
    positions: tuple[str, int] | tuple[()] = ()
    transposed: bool = False
    tied: Setting = flag("tie_word_embeddings")
    vocab_size: Setting = size("vocab_size")
    hidden_size: Setting = size("hidden_size", most=1 << 20)
    layer_count: Setting = size("num_hidden_layers", most=10_000)
    max_position: Setting = size("max_position_embeddings", most=LONGEST)
    embed_scale: Setting = number(1.0)
    residual: Setting = number(1.0)
    logits: Setting = number(1.0)
    logit_cap: Setting = number(None, optional=True)
    ropes: Mapping[str, RopeRule] = field(default_factory=lambda: {"main": RopeRule()})
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    like: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = (r".*rotary(_pos)?_emb\.inv_freq$",)
    extra_layers: bool = False

    def __post_init__(self) -> None:
        for name in ("mixers", "of_kind", "ropes", "fixed", "like", "defaults", "aliases"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        unknown = {kind.mixer for kind in self.of_kind.values()} - set(self.mixers)
        turned = {kind.rope for kind in self.of_kind.values()} - {None, *self.ropes}
        if not self.types or unknown or turned:
            raise ValueError(f"family {self.types}: no types, or no such mixers {unknown} or ropes {turned}")


@dataclass(frozen=True)
class Wrapper:
    """Models of several towers whose configuration holds that of a language model.

    Attributes:
        types: values of ``model_type``.
        text: ``model_type`` of the language model where its own record names none.
        records: keys under which that record stands; a file with none of them is that record itself.
        changes: fields of the language model's row that are others here.
    """

    types: tuple[str, ...]
    text: str
    records: tuple[str, ...] = ("text_config",)
    changes: Mapping[str, Any] = field(default_factory=dict)


__all__ = ["FULL", "SLIDING", "Family", "Kind", "Kinds", "RopeRule", "Sparse", "Wrapper"]
