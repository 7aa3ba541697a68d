"""``config.json`` to a checked `ModelConfig`: the numbers a decoder is built from, the family's defaults filled in.

The result is what the reference implementation's configuration object says after construction; that library is not
imported here because doing so takes seconds and hundreds of megabytes. Whatever is wrong with the file (syntax,
types, impossible sizes, features that the family's row cannot express) is reported with the file and the key.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from frontends.checkpoint.config_keys import Unread, unread, weigh_rope
from frontends.families.llama import LINEARS, Factors, Family
from frontends.families.table import FAMILIES
from frontends.modules.rope import KINDS, MAX_LENGTH, Rope, read_rope, shown, unread_keys
from ir.base.diag import Diagnostic, LadingError, suggest
from ir.base.json_numbers import whole

MAX_CONFIG_BYTES = 16 << 20
"""Configuration files above this size are refused unread."""

MAX_DEPTH = 64
"""Deepest nesting of a believable configuration file."""

DEFAULT_THETA = 10_000.0

ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "silu": ("Swish", {}),
    "swish": ("Swish", {}),
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}
"""Operator and attributes of each activation name."""

SIZES: dict[str, int] = {
    "vocab_size": 1 << 27,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": MAX_LENGTH,
    "sliding_window": MAX_LENGTH,
}
"""Largest believable value of each size; the smallest is 1."""


@dataclass(frozen=True)
class Layer:
    """What differs between layers: the window in tokens (None: all earlier tokens) and whether the rope applies."""

    window: int | None = None
    rope: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """A checked model configuration.

    Attributes:
        path: the file, for messages.
        digest: SHA-256 of the file's bytes, hexadecimal; empty when there was no file.
        family: row the model belongs to.
        layers: one record for each decoder layer.
        rotary_dim: number of rotated elements of each head.
        epsilon: added to the mean square in every norm.
        activation: key of `ACTIVATIONS`.
        tied: the file says that the output projection is the embedding.
        bias: for each linear role whether it has a bias; None when the stored tensors decide.
        rope: the rope of the layers that have one.
        attention_scale: multiplier of the scores; None means one over the root of `head_dim`.
        embedding_scale, residual_scale, logit_scale: multipliers, 1 when absent.
        warnings: keys of the file that were left out of account.
        unread: every key of the file that was not read, by `frontends.checkpoint.config_keys.Weight`.
    """

    path: str
    digest: str
    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    max_position: int
    epsilon: float
    activation: str
    tied: bool
    layers: tuple[Layer, ...]
    bias: Mapping[str, bool | None]
    rope: Rope
    attention_scale: float | None
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    warnings: tuple[Diagnostic, ...] = ()
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def context(self) -> int:
        """Longest sequence the model is meant for."""
        return self.rope.context if any(layer.rope for layer in self.layers) else self.max_position


def read_config(path: Path, families: Mapping[str, Family] = FAMILIES) -> ModelConfig:
    """Read and check a ``config.json``.

    Raises:
        LadingError: F530 unreadable or not a JSON object, F531 a value of the wrong type or size, F532 no model type,
            F533 unknown family, F534 a feature the family lacks, F535 quantized checkpoint, F536 heads that do not fit,
            F537 unknown activation, F538 impossible window, F540 or F541 impossible rope, F561 keys that are not read
            and change the numbers.
    """
    data = _read_bytes(path)
    return resolve(parse_config(data, str(path)), str(path), families, hashlib.sha256(data).hexdigest())


def parse_config(data: bytes, where: str) -> dict[str, Any]:
    """Parse JSON text that must be one object of finite numbers; F530 otherwise."""
    try:
        raw = json.loads(data.decode("utf-8-sig"), parse_constant=_not_finite, parse_float=_finite, parse_int=whole)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise LadingError("F530", f"the configuration is not valid JSON: {reason}", where) from error
    if not isinstance(raw, dict):
        raise LadingError("F530", f"the configuration is a JSON {type(raw).__name__}, not an object", where)
    level: list[Any] = [raw]
    for _ in range(MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
        if not level:
            return raw
    raise LadingError("F530", f"the configuration is nested more than {MAX_DEPTH} levels deep", where)


def resolve(
    raw: Mapping[str, Any], path: str = "config.json", families: Mapping[str, Family] = FAMILIES, digest: str = ""
) -> ModelConfig:
    """Check a parsed configuration and fill in the defaults of its family; errors as in `read_config`."""
    family = _family(raw, path, families)
    _refuse_unsupported(raw, path)
    keys = _Keys(raw, family, path)
    heads = keys.size("num_attention_heads")
    kv_heads = keys.optional_size("num_key_value_heads") or heads
    hidden = keys.size("hidden_size")
    head_dim = keys.optional_size("head_dim") or hidden // heads
    if heads % kv_heads:
        message = f"{heads} attention heads cannot share {kv_heads} key/value heads"
        hint = ""
        if "num_key_value_heads" not in raw:
            hint = f"num_key_value_heads is missing, and {kv_heads} is what {family.model_type} then has: write it"
        raise LadingError("F536", message, keys.at("num_key_value_heads"), hint)
    if head_dim == 0:
        raise LadingError("F536", f"hidden_size {hidden} is smaller than the {heads} heads", keys.at("hidden_size"))
    max_position = keys.size("max_position_embeddings")
    rope, record = _rope(keys, head_dim, max_position)
    windows = WINDOW_RULES[family.windows](keys)
    ropes = ROPE_RULES[family.rope_layers](keys)
    config = ModelConfig(
        path=path,
        digest=digest,
        family=family,
        vocab_size=keys.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=rope.width,
        max_position=max_position,
        epsilon=keys.number("rms_norm_eps", 0.0, 1.0),
        activation=_activation(keys),
        tied=keys.flag("tie_word_embeddings"),
        layers=tuple(Layer(window, turned) for window, turned in zip(windows, ropes, strict=True)),
        bias=_biases(keys),
        rope=rope,
        attention_scale=_product(keys, family.attention_scale) if family.attention_scale else None,
        embedding_scale=_product(keys, family.embedding_scale),
        residual_scale=_product(keys, family.residual_scale),
        logit_scale=_product(keys, family.logit_scale),
    )
    left = unread(raw, keys.seen, family.model_type, path)
    _weigh_rope(left, keys, rope, record)
    left.finish()
    weighed: dict[str, tuple[str, ...]] = {weight: tuple(names) for weight, names in sorted(left.keys.items())}
    return replace(config, warnings=tuple(left.warnings), unread=weighed)


# ---- reading the file ----


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise LadingError("F530", f"the configuration cannot be read: {error.strerror or error}", str(path)) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise LadingError("F530", f"the configuration is larger than {MAX_CONFIG_BYTES >> 20} MiB", str(path))
    return data


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


class _Keys:
    """Typed access to the keys of one configuration, falling back to the family's defaults."""

    def __init__(self, raw: Mapping[str, Any], family: Family, path: str) -> None:
        self.raw = raw
        self.family = family
        self.path = path
        self.seen: set[str] = set()

    def at(self, key: str) -> str:
        """Location of a key."""
        return f"{self.path}:{key}"

    def get(self, key: str) -> Any:
        """Value of a key, its default, or None; the key counts as read."""
        self.seen.add(key)
        return self.raw[key] if key in self.raw else self.family.defaults.get(key)

    def bad(self, key: str, wanted: str) -> LadingError:
        """The error of a value that is not what was wanted."""
        return LadingError("F531", f"{key} is {shown(self.get(key))}; it must be {wanted}", self.at(key))

    def size(self, key: str) -> int:
        """A positive integer within `SIZES`."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= SIZES[key]:
            raise self.bad(key, f"an integer from 1 to {SIZES[key]}")
        return value

    def optional_size(self, key: str) -> int | None:
        """Like `size`, or None for null and absent."""
        return None if self.get(key) is None else self.size(key)

    def number(self, key: str, low: float, high: float) -> float:
        """A number between two bounds, both allowed."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.bad(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.bad(key, "true or false")
        return value

    def record(self, key: str) -> dict[str, Any]:
        """A JSON object; empty for null and absent."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.bad(key, "an object")
        return dict(value or {})


# ---- checks of the whole file ----


def _family(raw: Mapping[str, Any], path: str, families: Mapping[str, Family]) -> Family:
    if "model_type" not in raw:
        raise LadingError("F532", "the configuration has no model_type", path, "is this the model's own config.json?")
    name = raw["model_type"]
    if not isinstance(name, str):
        raise LadingError("F531", f"model_type is {shown(name)}; it must be a string", f"{path}:model_type")
    if name not in families:
        near = suggest(name[:60], list(families))
        way = "if transformers knows it, --via torch compiles the graph that torch exports of it"
        hint = f"{near} known families: {', '.join(sorted(families))}; {way}".strip()
        raise LadingError("F533", f"model family {shown(name)} is not supported", f"{path}:model_type", hint)
    return families[name]


def _refuse_unsupported(raw: Mapping[str, Any], path: str) -> None:
    for key in ("quantization_config", "compression_config"):
        record = raw.get(key)
        if record:
            method = record.get("quant_method") if isinstance(record, dict) else None
            raise LadingError(
                "F535",
                f"the checkpoint is quantized ({shown(method) if method else 'method not stated'})",
                f"{path}:{key}",
                "start from the original bf16, fp16 or fp32 checkpoint",
            )
    if raw.get("per_layer_config"):
        raise LadingError("F534", "layers of different sizes are not supported", f"{path}:per_layer_config")
    if raw.get("is_encoder_decoder"):
        raise LadingError("F534", "encoder-decoder models are not supported", f"{path}:is_encoder_decoder")


# ---- parts ----


def _activation(keys: _Keys) -> str:
    key = keys.family.activation_key
    name = keys.get(key)
    if not isinstance(name, str):
        raise keys.bad(key, "the name of an activation")
    if name not in ACTIVATIONS:
        hint = f"{suggest(name[:60], list(ACTIVATIONS))} known activations: {', '.join(ACTIVATIONS)}".strip()
        raise LadingError("F537", f"activation {shown(name)} is not supported", keys.at(key), hint)
    return name


def _biases(keys: _Keys) -> dict[str, bool | None]:
    found: dict[str, bool | None] = {}
    for role in LINEARS:
        rule = keys.family.bias.get(role, False)
        found[role] = rule if isinstance(rule, bool) else None if rule == "stored" else keys.flag(rule)
    return found


def _product(keys: _Keys, factors: Factors) -> float:
    return math.prod(keys.number(key, 1e-9, 1e9) ** power for key, power in factors)


def _rope(keys: _Keys, head_dim: int, max_position: int) -> tuple[Rope, dict[str, Any]]:
    """The rope record of either spelling, read and as it stands; keys at top level fill what the record leaves out."""
    key = _rope_key(keys)
    stated = keys.record(key)
    record = dict(stated)
    nested = [name for name, value in record.items() if isinstance(value, dict)]
    if nested:
        raise LadingError("F534", f"a rope for each layer type ({shown(nested)}) is not supported", keys.at(key))
    theta = keys.get("rope_theta")
    record.setdefault("rope_theta", DEFAULT_THETA if theta is None else theta)
    original = keys.get("original_max_position_embeddings")
    if original is not None:
        record["original_max_position_embeddings"] = original
    width = _rotary_dim(keys, record, head_dim, key)
    return read_rope(record, width, max_position, keys.at(key)), stated


def _rope_key(keys: _Keys) -> str:
    both = [name for name in ("rope_scaling", "rope_parameters") if keys.record(name)]
    return both[0] if both else "rope_parameters"


def _weigh_rope(left: Unread, keys: _Keys, rope: Rope, record: Mapping[str, Any]) -> None:
    """Weigh the entries of the rope record that its kind does not read, and a second record that is passed over."""
    key = _rope_key(keys)
    for name in unread_keys(record):
        weight = weigh_rope(name, record[name])
        if any(name in (*kind.needs, *kind.reads) for kind in KINDS.values()):
            left.note(f"{key}.{name}", "numbers")
            text = f"{shown(name)} is not used by a rope of kind {rope.kind!r}"
            left.warnings.append(Diagnostic("F560", text, keys.at(key), severity="warning"))
        elif weight == "numbers":
            left.refuse(f"{key}.{name}", record[name])
        else:
            left.note(f"{key}.{name}", weight)
    other = keys.record("rope_parameters") if key == "rope_scaling" else {}
    if any(record.get(name) != value for name, value in other.items()):
        left.note("rope_parameters", "numbers")
        text = "rope_parameters is not used where rope_scaling stands"
        left.warnings.append(Diagnostic("F560", text, keys.at("rope_parameters"), severity="warning"))


def _rotary_dim(keys: _Keys, record: Mapping[str, Any], head_dim: int, where: str) -> int:
    factor = record.get("partial_rotary_factor", keys.get("partial_rotary_factor"))
    if factor is None:
        return head_dim
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1:
        raise LadingError("F541", f"partial_rotary_factor is {shown(factor)}; it must lie in (0, 1]", keys.at(where))
    width = int(head_dim * factor)
    if width != head_dim and not keys.family.partial_rotary:
        message = f"partial_rotary_factor is {factor}, but the {keys.family.model_type} family turns the whole head"
        raise LadingError("F534", message, keys.at(where))
    return width


# ---- rules that rows name ----


def _no_windows(keys: _Keys) -> list[int | None]:
    return [None] * keys.size("num_hidden_layers")


def _window_everywhere(keys: _Keys) -> list[int | None]:
    return [keys.optional_size("sliding_window")] * keys.size("num_hidden_layers")


def _window_by_layer_types(keys: _Keys) -> list[int | None]:
    """``layer_types`` when present, else a window from layer ``max_window_layers`` on, if windows are used at all."""
    count = keys.size("num_hidden_layers")
    window = keys.optional_size("sliding_window")
    if not keys.flag("use_sliding_window"):
        window = None
    types = keys.get("layer_types")
    if types is None:
        first = keys.get("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise keys.bad("max_window_layers", "a number of layers")
        return [window if index >= first else None for index in range(count)]
    if not isinstance(types, list) or len(types) != count:
        raise keys.bad("layer_types", f"a list of {count} names, one for each layer")
    if "sliding_attention" in types and window is None:
        raise LadingError("F538", "layer_types has sliding layers, but no window is in use", keys.at("layer_types"))
    known: dict[Any, int | None] = {"sliding_attention": window, "full_attention": None, "attention": None}
    for name in types:
        if not isinstance(name, str) or name not in known:
            raise LadingError("F538", f"layer type {shown(name)} is not supported", keys.at("layer_types"))
    return [known[name] for name in types]


def _rope_everywhere(keys: _Keys) -> list[bool]:
    return [True] * keys.size("num_hidden_layers")


def _rope_by_list(keys: _Keys) -> list[bool]:
    """``no_rope_layers`` (1: with rope, in spite of the name), else all but every n-th layer."""
    count = keys.size("num_hidden_layers")
    listed = keys.get("no_rope_layers")
    if listed is None:
        interval = keys.get("no_rope_layer_interval")
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise keys.bad("no_rope_layer_interval", "a number of layers")
        return [(index + 1) % interval != 0 for index in range(count)]
    if not isinstance(listed, list) or len(listed) != count or any(item not in (0, 1) for item in listed):
        raise keys.bad("no_rope_layers", f"a list of {count} zeros and ones")
    return [bool(item) for item in listed]


WINDOW_RULES: dict[str, Callable[[_Keys], list[int | None]]] = {
    "none": _no_windows,
    "all": _window_everywhere,
    "layer_types": _window_by_layer_types,
}
"""How a family decides the window of each layer, in tokens including the token itself."""

ROPE_RULES: dict[str, Callable[[_Keys], list[bool]]] = {"all": _rope_everywhere, "no_rope_layers": _rope_by_list}
"""How a family decides which layers have a rope."""
