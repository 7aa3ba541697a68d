"""What the metadata of a GGUF file says about a model, asked key by key; what was asked for is remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from frontends.configuration.keys import shown
from ir.base.diag import LadingError
from ir.tensor.base import Tensor


class Facts:
    """The metadata below the name of an architecture, and the tensors, of one model.

    Attributes:
        architecture: ``general.architecture``.
        metadata: all metadata.
        tensors: the tensors under the names of the file.
        where: the file, for messages.
    """

    def __init__(self, metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
        self.metadata, self.tensors, self.where = metadata, tensors, where
        self.architecture = metadata.get("general.architecture")
        self._asked: set[str] = set()

    # ---- metadata ----

    @property
    def below(self) -> list[str]:
        """Keys below the architecture, without its name."""
        prefix = f"{self.architecture}."
        return [key.removeprefix(prefix) for key in self.metadata if key.startswith(prefix)]

    def get(self, key: str, otherwise: Any = None) -> Any:
        """A value below the architecture, as it is stored."""
        self._asked.add(key)
        return self.metadata.get(f"{self.architecture}.{key}", otherwise)

    def bad(self, key: str, wanted: str) -> LadingError:
        """The error of a value that is missing or not what was wanted."""
        full = f"{self.architecture}.{key}"
        if full not in self.metadata:
            return LadingError("F586", f"the metadata lacks {full}, {wanted}", self.where)
        value = self.metadata[full]
        text = shown(value.tolist() if isinstance(value, np.ndarray) else value)
        return LadingError("F586", f"{full} is {text}; it must be {wanted}", self.where)

    def size(self, key: str, otherwise: int | None = None) -> int:
        """A positive integer; of a list with one for each layer, which must be equal."""
        value = self.get(key, otherwise)
        if isinstance(value, np.ndarray) and value.size and bool((value == value[0]).all()):
            value = value[0].item()
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
            raise self.bad(key, "a positive integer, the same for every layer")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float:
        """A finite number."""
        value = self.get(key, otherwise)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.bad(key, "a number")
        return single(value) if isinstance(value, float) else float(value)

    def flag(self, key: str, otherwise: bool | None = None) -> bool:
        """True or false."""
        value = self.get(key, otherwise)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def unread(self) -> list[str]:
        """Keys below the architecture that nobody asked for and that may change the computation."""
        return [
            f"{self.architecture}.{key}"
            for key in self.below
            if key not in self._asked and not self._changes_nothing(key)
        ]

    def _changes_nothing(self, key: str) -> bool:
        """True for a key whose value is what the computation is without it."""
        value = self.metadata[f"{self.architecture}.{key}"]
        if isinstance(value, np.ndarray) and value.size and bool((value == value[0]).all()):
            value = value[0].item()
        return key in NEUTRAL and NEUTRAL[key](self, value)

    # ---- what follows from it ----

    @property
    def blocks(self) -> int:
        """Number of layers that are stored."""
        return self.size("block_count")

    @property
    def layers(self) -> int:
        """Number of layers of the decoder: those behind them, which predict further tokens, are stored too."""
        further = self.get("nextn_predict_layers", 0)
        if type(further) is not int or not 0 <= further < self.blocks:
            raise self.bad("nextn_predict_layers", "a number of layers")
        return self.blocks - further

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return self.size("attention.head_count")

    @property
    def kv_heads(self) -> int:
        """Key/value heads of a layer."""
        return self.size("attention.head_count_kv", self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.size("attention.key_length", max(1, self.size("embedding_length") // self.heads))

    # ---- tensors ----

    def has(self, name: str) -> bool:
        """True when a tensor is stored, in some layer for names such as ``attn_q.bias``."""
        return name in self.tensors or f"blk.0.{name}" in self.tensors or self._in_a_layer(name)

    def _in_a_layer(self, name: str) -> bool:
        return any(f"blk.{index}.{name}" in self.tensors for index in range(1, min(self.layers, 10_000)))

    def vector(self, name: str) -> list[float] | None:
        """The numbers of a small tensor; None where it is not stored.

        Raises:
            LadingError: F586 it is no vector.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        if tensor.type.rank != 1 or tensor.row_count > 1 << 16:
            raise LadingError(
                "F586", f"tensor {name} has the shape {list(tensor.shape)}; it must be a vector", self.where
            )
        return [single(number) for number in tensor.load().astype(np.float32)]


Neutral = Callable[[Facts, Any], bool]


def _any(facts: Facts, value: Any) -> bool:
    return True


def _none(facts: Facts, value: Any) -> bool:
    return not value


def _one(facts: Facts, value: Any) -> bool:
    return value == 1


def _head(facts: Facts, value: Any) -> bool:
    return value == facts.head_dim


NEUTRAL: dict[str, Neutral] = {
    "vocab_size": _any,
    "embedding_length_out": lambda facts, value: value == facts.size("embedding_length"),
    "tensor_data_layout": _any,
    "feed_forward_length": lambda facts, value: value == facts.get("expert_feed_forward_length"),
    "rope.scaling.finetuned": _any,
    "rope.scaling.type": lambda facts, value: value == "none",
    "rope.scaling.factor": lambda facts, value: value in (0, 1),
    "rope.scaling.attn_factor": _one,
    "rope.scaling.original_context_length": _any,
    "rope.dimension_count": _head,
    "rope.dimension_count_swa": _head,
    "attention.value_length": _head,
    "attention.key_length_swa": _head,
    "attention.value_length_swa": _head,
    "attention.causal": lambda facts, value: value is True,
    "attention.clamp_kqv": _none,
    "attention.max_alibi_bias": _none,
    "attention.sliding_window": _none,
    "attention.scale": lambda facts, value: abs(value * facts.head_dim**0.5 - 1) < 1e-6,
    "attention.layer_norm_epsilon": lambda facts, value: "attention.layer_norm_rms_epsilon" in facts.below,
    "attention.shared_kv_layers": _none,
    "attention.temperature_scale": _none,
    "attn_logit_softcapping": _none,
    "final_logit_softcapping": _none,
    "router_logit_softcapping": _none,
    "expert_count": _none,
    "expert_used_count": _none,
    "expert_shared_count": _none,
    "expert_feed_forward_length": lambda facts, value: not facts.get("expert_count"),
    "expert_group_count": lambda facts, value: value in (0, 1),
    "expert_group_used_count": lambda facts, value: value in (0, 1),
    "leading_dense_block_count": _none,
    "embedding_scale": _one,
    "residual_scale": _one,
    "logit_scale": _one,
    "pooling_type": _none,
}
"""Keys that may stand in any file, and when they change nothing. What is stored of a vocabulary or a split is one too."""


def single(number: float) -> float:
    """The shortest decimal number that is a single-precision number, such as 1e-06 for what is stored of it."""
    return float(str(np.float32(number)))


def layers_of(names: Collection[str]) -> set[int]:
    """Numbers of layers that tensors belong to."""
    found = set()
    for name in names:
        parts = name.split(".", 2)
        if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal():
            found.add(int(parts[1]))
    return found


__all__ = ["NEUTRAL", "Facts", "layers_of", "single"]
