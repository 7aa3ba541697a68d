"""Model families as data: what a decoder of each ``model_type`` is made of, and how its checkpoint names things.

The configuration reader and the graph builder are written against the fields of `Family` alone. A new family is a new
row here, with the defaults of its configuration class, and a test that compares it with the reference implementation
in `transformers`.

All families are pre-trained causal decoders made of attention and a gated MLP. Linear layers keep their weights as
``[out, in]``; every name is that of a module, to which ``.weight`` and ``.bias`` are added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Factors = tuple[tuple[str, float], ...]
"""A multiplier as a product of configuration values raised to powers; empty means 1."""

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
"""The roles of a layer's linear modules."""


@dataclass(frozen=True)
class Names:
    """Module names of a checkpoint. Those of a layer are relative to ``<layers>.<index>.``; an empty name means absent.

    Attributes:
        embed, layers, norm: embedding, list of layers and final norm, relative to whatever prefix a checkpoint has.
        head: output projection, found by this name anywhere.
        attn_in, attn_out, mlp_in, mlp_out: norms before and after the two branches of a layer.
        q, k, v, o, gate, up, down: the linear modules.
        qkv: one module that holds the rows of q, then k, then v, in place of those three.
        gate_up: one module that holds the rows of gate, then up, in place of those two.
        q_norm, k_norm: norms of queries and keys.
    """

    embed: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    head: str = "lm_head"
    attn_in: str = "input_layernorm"
    attn_out: str = ""
    mlp_in: str = "post_attention_layernorm"
    mlp_out: str = ""
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    qkv: str = ""
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    gate_up: str = ""
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        model_type: value of that key in ``config.json``.
        defaults: values that the family's configuration class gives to absent keys. A key that is in neither this table
            nor the file has no value.
        names: module names.
        bias: for each linear role whether it has a bias: True, a configuration key that says so, or ``"stored"`` when
            the presence of the tensor decides. Roles left out have none.
        qk_norm: ``""``, ``"head"`` (over each head, weight shared by the heads) or ``"full"`` (over the projection).
        qk_norm_after_rope: the norm follows the rotation.
        norm_offset: number added to every stored norm weight.
        rope_pairs: stored for a rope that turns neighbours (2i, 2i+1) instead of the halves (i, i + n/2).
        partial_rotary: the family honours ``partial_rotary_factor``.
        rope_layers: which layers turn queries and keys, a key of `frontends.checkpoint.config_file.ROPE_RULES`.
        windows: which layers see a sliding window, a key of `frontends.checkpoint.config_file.WINDOW_RULES`.
        activation_key: configuration key of the activation between the MLP's matrices.
        attention_scale: multiplier of the scores; empty means one over the root of the head width.
        embedding_scale, residual_scale, logit_scale: multipliers of the embedding, of each branch before it is added,
            and of the logits.
        ignore: regular expressions of stored tensors that the computation does not need, matched from the start of the
            name after the prefix or of the whole name.
        extra_layers: layers beyond ``num_hidden_layers`` may be stored and are left out.
    """

    model_type: str
    defaults: Mapping[str, Any]
    names: Names = Names()
    bias: Mapping[str, bool | str] = field(default_factory=dict)
    qk_norm: str = ""
    qk_norm_after_rope: bool = False
    norm_offset: float = 0.0
    rope_pairs: bool = False
    partial_rotary: bool = False
    rope_layers: str = "all"
    windows: str = "none"
    activation_key: str = "hidden_act"
    attention_scale: Factors = ()
    embedding_scale: Factors = ()
    residual_scale: Factors = ()
    logit_scale: Factors = ()
    ignore: tuple[str, ...] = (r".*rotary_emb\.inv_freq$",)
    extra_layers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))
        object.__setattr__(self, "bias", MappingProxyType(dict(self.bias)))
        unknown = set(self.bias) - set(LINEARS)
        if unknown or self.qk_norm not in ("", "head", "full"):
            raise ValueError(f"family {self.model_type}: bad bias roles {unknown} or qk_norm {self.qk_norm!r}")


_QWEN = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

ROWS: tuple[Family, ...] = (
    Family(
        "qwen2",
        defaults=_QWEN,
        bias={"q": True, "k": True, "v": True},
        windows="layer_types",
    ),
    Family(
        "qwen3",
        defaults={**_QWEN, "head_dim": 128, "attention_bias": False},
        bias=dict.fromkeys(("q", "k", "v", "o"), "attention_bias"),
        qk_norm="head",
        windows="layer_types",
    ),
    Family(
        "llama",
        defaults={**_LLAMA, "attention_bias": False, "mlp_bias": False},
        bias={
            **dict.fromkeys(("q", "k", "v", "o"), "attention_bias"),
            **dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
        },
    ),
    Family(
        "mistral",
        defaults={
            **_LLAMA,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 4096 * 32,
            "sliding_window": 4096,
        },
        windows="all",
    ),
)
