"""``adapter_config.json`` of a low-rank adapter: checked, and asked for the factor of each module.

The keys are those of the class ``LoraConfig`` of peft. Keys that say how an adapter was trained are passed over; those that
make it something else than ``W + s B A`` are refused by name, unless they are null, false or empty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontends.checkpoint.config_file import parse_config
from frontends.configuration.keys import shown
from ir.base.diag import LadingError

CONFIG = "adapter_config.json"

MAX_BYTES = 16 << 20

LONGEST_PATTERN = 500

_REPEATED_GROUP = re.compile(r"\)[*+{]")
"""A repeated group, in which a pattern can take ages to fail."""

STARTS = frozenset({"gaussian", "eva", "orthogonal"})
"""Values of ``init_lora_weights`` that leave the base as it was; others begin by taking something out of it."""

OTHER = {
    "layer_replication": "layers of the base are repeated",
    "alora_invocation_tokens": "it works only after certain tokens",
    "use_qalora": "its input is pooled by groups",
    "target_parameters": "it changes parameters that are no linear module",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "which adapters work is chosen for each token",
    "monteclora_config": "its factors are drawn",
    "kasa_config": "its factors have singular values of their own",
    "velora_config": "its activations are compressed",
}
"""Keys that make an adapter something else, and what."""

PASSED_OVER = frozenset(
    """
    task_type revision inference_mode auto_mapping peft_version target_modules exclude_modules lora_dropout bias
    modules_to_save layers_to_transform layers_pattern megatron_config megatron_core loftq_config eva_config
    corda_config lora_ga_config qalora_group_size runtime_config lora_bias
    """.split()
)
"""Keys that say how it was trained, or what its tensors say too."""

READ = frozenset(
    """
    peft_type base_model_name_or_path r lora_alpha use_rslora fan_in_fan_out use_dora ensure_weight_tying rank_pattern
    alpha_pattern trainable_token_indices init_lora_weights
    """.split()
)


@dataclass(frozen=True)
class AdapterConfig:
    """A checked configuration.

    Attributes:
        base: name of the model that it was trained on; None where it does not say.
        rank, alpha: for modules that no pattern names.
        rank_scaled: the factor is alpha over the root of the rank, and not over the rank (``use_rslora``).
        transposed: weights of the modules are stored as ``[in, out]`` (``fan_in_fan_out``).
        directions: rows of the sum get lengths of their own (``use_dora``).
        keeps_tie: an embedding and an output matrix that are one stay one (``ensure_weight_tying``).
        ranks, alphas: patterns of module names and what holds for them.
        tokens: rows that are trained, by the last part of the module's name; under the empty name for any module.
        where: the file, for messages.
    """

    base: str | None
    rank: int
    alpha: float
    rank_scaled: bool
    transposed: bool
    directions: bool
    keeps_tie: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    tokens: Mapping[str, tuple[int, ...]]
    where: str

    def rank_of(self, module: str) -> int:
        """The rank of a module's factors."""
        found = _matching(self.ranks, module)
        return self.rank if found is None else self.ranks[found]

    def factor_of(self, module: str) -> float:
        """What the product of a module's factors is multiplied by."""
        found = _matching(self.alphas, module)
        alpha = self.alpha if found is None else self.alphas[found]
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_scaled else rank)

    def tokens_of(self, module: str) -> tuple[int, ...]:
        """Rows of a module that are trained one by one."""
        return self.tokens.get(module.rpartition(".")[2], self.tokens.get("", ()))


def _matching(patterns: Mapping[str, Any], module: str) -> str | None:
    """The first pattern that fits the end of a module's name, from a dot or from the start, as peft compares them."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), None)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check the configuration of an adapter folder.

    Raises:
        LadingError: F590 there is none or it is malformed, F591 the adapter is of another kind.
    """
    path = folder / CONFIG
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = f"--lora takes the folder of an adapter, with {CONFIG} and adapter_model.safetensors"
        raise LadingError("F590", f"no adapter can be read here: {error.strerror or error}", str(path), hint) from error
    if len(data) > MAX_BYTES:
        raise LadingError("F590", f"the file is larger than {MAX_BYTES >> 20} MiB", str(path))
    try:
        raw = parse_config(data, str(path))
    except LadingError as error:
        raise LadingError("F590", error.diagnostics[0].message, str(path)) from error
    _refuse_others(raw, str(path))
    keys = _Keys(raw, str(path))
    return AdapterConfig(
        base=keys.text("base_model_name_or_path"),
        rank=keys.size(keys.raw.get("r", 8), "r"),
        alpha=keys.number(keys.raw.get("lora_alpha", 8), "lora_alpha"),
        rank_scaled=keys.flag("use_rslora"),
        transposed=keys.flag("fan_in_fan_out"),
        directions=keys.flag("use_dora"),
        keeps_tie=keys.flag("ensure_weight_tying"),
        ranks={key: keys.size(item, "rank_pattern") for key, item in keys.patterns("rank_pattern")},
        alphas={key: keys.number(item, "alpha_pattern") for key, item in keys.patterns("alpha_pattern")},
        tokens=keys.tokens("trainable_token_indices"),
        where=str(path),
    )


def _refuse_others(raw: Mapping[str, Any], where: str) -> None:
    kind = raw.get("peft_type")
    if kind != "LORA":
        hint = "with peft, merge it into its base (merge_and_unload), save the result, and compile that"
        raise LadingError("F591", f"the adapter is of kind {shown(kind)}, not LORA", f"{where}:peft_type", hint)
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start not in STARTS:
        message = (
            f"training began by changing the base (init_lora_weights is {shown(start)}), so it does not fit the base"
        )
        hint = "save it with peft's path_initial_model_for_weight_conversion, which makes a plain adapter of it"
        raise LadingError("F591", message, f"{where}:init_lora_weights", hint)
    for key, what in OTHER.items():
        if raw.get(key):
            hint = "with peft, merge it into its base where that can be done, and compile the result"
            raise LadingError("F591", f"the adapter cannot be merged as a sum: {what} ({key})", f"{where}:{key}", hint)
    for key, value in raw.items():
        if value and key not in READ | PASSED_OVER:
            message = f"nobody knows what {shown(key)}: {shown(value)} makes of the adapter"
            raise LadingError("F591", message, where, "if it means nothing, take the key out of the file")


class _Keys:
    """Typed access to the keys of one configuration."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def bad(self, key: str, value: Any, wanted: str) -> LadingError:
        return LadingError("F590", f"{key} has {shown(value)}; it must be {wanted}", f"{self.where}:{key}")

    def size(self, value: Any, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 16:
            raise self.bad(key, value, "a rank from 1 to 65536")
        return value

    def number(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e9:
            raise self.bad(key, value, "a number up to 1e9")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.bad(key, value, "true or false")
        return bool(value)

    def text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.bad(key, value, "a string")
        return value or None

    def patterns(self, key: str) -> list[tuple[str, Any]]:
        value = self.raw.get(key) or {}
        if not isinstance(value, dict):
            raise self.bad(key, value, "an object")
        for pattern in value:
            try:
                fit = len(pattern) <= LONGEST_PATTERN and not _REPEATED_GROUP.search(pattern) and re.compile(pattern)
            except re.error:
                fit = False
            if not fit:
                raise self.bad(key, pattern, "patterns of module names without repeated groups")
        return list(value.items())

    def tokens(self, key: str) -> dict[str, tuple[int, ...]]:
        value = self.raw.get(key) or {}
        by_module = value if isinstance(value, dict) else {"": value}
        for item in by_module.values():
            if not isinstance(item, list) or not all(type(one) is int and 0 <= one < 1 << 31 for one in item):
                raise self.bad(key, item, "a list of token ids")
        return {name.rpartition(".")[2]: tuple(item) for name, item in by_module.items()}


__all__ = ["CONFIG", "AdapterConfig", "read_adapter_config"]
