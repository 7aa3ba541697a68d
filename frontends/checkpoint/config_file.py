"""``config.json`` to a checked `ModelConfig`: the row of the family with the file's values in the place of its specs.

The result is what the reference implementation's configuration object says after construction; that library is not
imported here because doing so takes seconds and hundreds of megabytes. Whatever is wrong with the file (syntax,
types, impossible sizes, features that the family's row cannot express) is reported with the file and the key.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frontends.checkpoint.config_keys import Unread, unread, weigh_rope
from frontends.configuration.class_defaults import ClassDefaults, class_defaults
from frontends.configuration.keys import IN_ROPE, Keys, shown
from frontends.configuration.specs import named_keys, settle
from frontends.families.model_config import LayerConfig, ModelConfig
from frontends.families.scheme import FULL, SLIDING, Family, Kind, Kinds, RopeRule, Sparse
from frontends.families.table import FAMILIES, WRAPPERS
from frontends.parts.activations import ACTIVATIONS
from frontends.parts.builder import Part
from frontends.parts.feed_forward import ACTIVATION
from frontends.parts.rope import KINDS, Rope, read_rope, unread_keys
from ir.base.diag import Diagnostic, LadingError, suggest
from ir.base.json_numbers import whole

MAX_CONFIG_BYTES = 16 << 20
"""Configuration files above this size are refused unread."""

MAX_DEPTH = 64
"""Deepest nesting of a believable configuration file."""

DEFAULT_THETA = 10_000.0


def read_config(path: Path, families: Mapping[str, Family] = FAMILIES) -> ModelConfig:
    """Read and check a ``config.json``.

    Raises:
        LadingError: F530 unreadable or not a JSON object, F531 a value of the wrong type or size, F532 no model type,
            F533 unknown family, F534 a feature the family lacks, F536 heads that do not fit,
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


@dataclass(frozen=True)
class _Text:
    """The record of the language model of a file: what stands before its keys, its row and its ``model_type``."""

    raw: Mapping[str, Any]
    prefix: str
    family: Family
    model_type: str
    wrapper: str


def resolve(
    raw: Mapping[str, Any], path: str = "config.json", families: Mapping[str, Family] = FAMILIES, digest: str = ""
) -> ModelConfig:
    """Check a parsed configuration and fill in the defaults of its family; errors as in `read_config`."""
    text = _text_record(raw, path, families)
    _refuse_unsupported(raw, path)
    row, known = text.family, class_defaults(text.family.like.get(text.model_type, text.model_type))
    keys = Keys(
        text.raw, path, {**known.defaults, **row.defaults}, {**known.aliases, **row.aliases}, prefix=text.prefix
    )
    # Parts that no layer has may lack their keys, so parts are settled where layers call for them.
    family = settle(row, keys, skip=_PARTS)
    layers, parts = _layers(row, keys, family.layer_count)
    ropes, records = _ropes(row, keys, layers, family.max_position, known)
    for part in parts:
        _check_part(part, keys, text)
    config = ModelConfig(
        path=path,
        digest=digest,
        model_type=text.model_type,
        family=family,
        vocab_size=family.vocab_size,
        hidden_size=family.hidden_size,
        max_position=family.max_position,
        tied=family.tied,
        layers=layers,
        ropes=ropes,
        wrapper=text.wrapper,
    )
    for key in named_keys(row):
        keys.get(key)
    left = unread(text.raw, keys, text.model_type, row, known, raw if text.wrapper else None)
    _weigh_ropes(left, keys, ropes, records)
    left.finish()
    weighed: dict[str, tuple[str, ...]] = {weight: tuple(names) for weight, names in sorted(left.keys.items())}
    return replace(config, warnings=tuple(left.warnings), unread=weighed)


_PARTS = ("ffn", "experts", "sparse", "kinds")
"""Fields of a row that are settled where layers call for them."""


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


# ---- checks of the whole file ----


def _text_record(raw: Mapping[str, Any], path: str, families: Mapping[str, Family]) -> _Text:
    """The language model of a file: itself, or that of one of several towers."""
    if "model_type" not in raw:
        raise LadingError("F532", "the configuration has no model_type", path, "is this the model's own config.json?")
    name = raw["model_type"]
    if not isinstance(name, str):
        raise LadingError("F531", f"model_type is {shown(name)}; it must be a string", f"{path}:model_type")
    wrapper = WRAPPERS.get(name)
    if wrapper is None:
        return _Text(raw, "", _row(name, path, families), name, "")
    record = next((key for key in wrapper.records if isinstance(raw.get(key), dict)), "")
    known = class_defaults(name)
    inner = {**known.text, **raw[record]} if record else _without_towers(raw)
    own = inner.get("model_type")
    model_type = own if record and isinstance(own, str) and own else wrapper.text
    tied = raw.get("tie_word_embeddings", known.defaults.get("tie_word_embeddings"))
    if tied is not None:
        inner["tie_word_embeddings"] = tied
    row = _row(model_type, path, families)
    row = replace(row, **wrapper.changes) if wrapper.changes else row
    return _Text(inner, f"{record}." if record else "", row, model_type, name)


def _without_towers(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the language model of a file that has them beside the records of the other parts."""
    towers = [key for key, value in raw.items() if isinstance(value, dict) and key.endswith("_config")]
    return {key: value for key, value in raw.items() if key not in (*towers, "architectures")}


def _row(name: str, path: str, families: Mapping[str, Family]) -> Family:
    if name not in families:
        way = "if transformers knows it, --via torch compiles the graph that torch exports of it"
        hint = f"the {len(families)} known ones are listed in docs/families.md; {way}"
        raise LadingError("F533", f"model family {shown(name)} is not supported", f"{path}:model_type", hint)
    return families[name]


def _refuse_unsupported(raw: Mapping[str, Any], path: str) -> None:
    if raw.get("per_layer_config"):
        raise LadingError("F534", "layers of different sizes are not supported", f"{path}:per_layer_config")
    if raw.get("is_encoder_decoder"):
        raise LadingError("F534", "encoder-decoder models are not supported", f"{path}:is_encoder_decoder")


# ---- layers ----


def _layers(row: Family, keys: Keys, count: int) -> tuple[tuple[LayerConfig, ...], list[Part]]:
    """The layers, and each part with values once."""
    parts: dict[int, Part] = {}

    def settled(part: Part) -> Part:
        if id(part) not in parts:
            parts[id(part)] = settle(part, keys)
        return parts[id(part)]

    found = []
    of_kind = {name: settle(kind, keys) for name, kind in row.of_kind.items()}
    kinds = _kinds(row, of_kind, keys, count)
    sparse = settle(row.sparse, keys) if row.experts is not None else None
    for index, name in enumerate(kinds):
        kind = of_kind[name]
        has_experts = sparse is not None and _is_sparse(sparse, index)
        feed = row.experts if has_experts and row.experts is not None else row.ffn
        found.append(LayerConfig(settled(row.mixers[kind.mixer]), settled(feed), kind.window, kind.rope))
    return tuple(found), list(parts.values())


def _is_sparse(rule: Sparse, index: int) -> bool:
    """True for a layer with experts."""
    inside = index >= rule.first and (rule.last in (None, -1) or index <= rule.last)
    return inside and (index + 1) % rule.step == 0 and index not in (rule.dense or ())


def _kinds(row: Family, of_kind: Mapping[str, Kind], keys: Keys, count: int) -> list[str]:
    """The kind of each layer."""
    rule = settle(row.kinds, keys)
    if not rule.only_if and rule.otherwise != FULL:
        return [rule.otherwise] * count
    listed = keys.get(rule.listed) if rule.listed else None
    if rule.listed and listed is not None and (listed or count == 0):
        return _listed(rule, of_kind, listed, keys, count)
    if not rule.only_if:
        return [FULL] * count
    if rule.period == 0:
        raise keys.bad(row.kinds.period[0], "a number of layers")
    if rule.period:
        last = range(rule.period - 1, count, rule.period)
        return [rule.hit if index in last or index >= rule.until else rule.miss for index in range(count)]
    return [FULL if index < rule.after else SLIDING for index in range(count)]


def _listed(rule: Kinds, of_kind: Mapping[str, Kind], listed: Any, keys: Keys, count: int) -> list[str]:
    """The kinds that a list in the file names."""
    key = rule.listed
    if not isinstance(listed, list) or len(listed) != count:
        raise keys.bad(key, f"a list of {count} entries, one for each layer")
    found = []
    for item in listed:
        name = rule.names.get(item, item) if isinstance(item, (str, int)) else None
        name = FULL if name == "attention" else name
        if not isinstance(name, str) or name not in of_kind:
            raise LadingError("F538", f"layer type {shown(item)} is not supported", keys.at(key))
        if name == SLIDING and (not rule.only_if or of_kind[name].window is None):
            raise LadingError("F538", f"{key} has sliding layers, but no window is in use", keys.at(key))
        found.append(name)
    return found


def _check_part(part: Part, keys: Keys, text: _Text) -> None:
    """What a part with values must be besides: numbers of heads that fit, an activation that is known."""
    heads, kv_heads = getattr(part, "heads", 1), getattr(part, "kv_heads", 1)
    if heads % kv_heads:
        hint = ""
        if not keys.stated("num_key_value_heads"):
            hint = f"num_key_value_heads is missing, and {kv_heads} is what {text.model_type} then has: write it"
        message = f"{heads} attention heads cannot share {kv_heads} key/value heads"
        raise LadingError("F536", message, keys.at("num_key_value_heads"), hint)
    name = getattr(part, "activation", "silu")
    if name not in ACTIVATIONS:
        key = next((key for key in ACTIVATION if isinstance(key, str) and keys.get(key) == name), ACTIVATION[0])
        hint = f"{suggest(name[:60], list(ACTIVATIONS))} known activations: {', '.join(ACTIVATIONS)}".strip()
        raise LadingError("F537", f"activation {shown(name)} is not supported", keys.at(key), hint)


# ---- ropes ----


def _ropes(
    row: Family, keys: Keys, layers: tuple[LayerConfig, ...], max_position: int, known: ClassDefaults
) -> tuple[dict[tuple[str, int], Rope], dict[str, dict[str, Any]]]:
    """The ropes that layers have by name and width, and the record that each was read from, by name."""
    key = keys.rope_key()
    stated = keys.record(key) or dict(known.rope)
    nested = sorted(name for name, value in stated.items() if isinstance(value, dict))
    if nested and not set(nested) & set(row.ropes):
        raise LadingError("F534", f"a rope for each layer type ({shown(nested)}) is not supported", keys.at(key))
    ropes, records = {}, {}
    for layer in layers:
        width = getattr(layer.mixer, "rope_width", 0)
        if layer.rope is None or not width or (layer.rope, width) in ropes:
            continue
        rule = settle(row.ropes[layer.rope], keys)
        record = stated.get(layer.rope) or {} if nested else stated if rule.scaled else {}
        records[layer.rope] = dict(record)
        full = _completed(dict(record), rule, keys, known.theta)
        turned = _turned(width, full, rule, keys, key)
        ropes[layer.rope, width] = read_rope(full, turned, max_position, keys.at(key))
    return ropes, records


def _completed(record: dict[str, Any], rule: RopeRule, keys: Keys, theta: Any) -> dict[str, Any]:
    """A rope record with what stands elsewhere, and its kind by our name for it."""
    base = rule.theta if rule.theta is not None else theta if isinstance(theta, (int, float)) else DEFAULT_THETA
    record.setdefault("rope_theta", base)
    original = keys.get("original_max_position_embeddings")
    if original is not None:
        record["original_max_position_embeddings"] = original
    kind = record.get("rope_type", record.get("type", "default"))
    if isinstance(kind, str):
        kind = rule.names.get(kind, kind)
    if rule.alpha and kind == "dynamic" and record.get("alpha"):
        kind = "alpha"
    record["rope_type"] = kind
    return record


def _turned(width: int, record: Mapping[str, Any], rule: RopeRule, keys: Keys, key: str) -> int:
    """How many elements of a head turn."""
    factor = record.get("partial_rotary_factor")
    if factor is None:
        factor = rule.partial if rule.partial is not None else keys.get("partial_rotary_factor")
    if factor is None:
        return width
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 1:
        raise LadingError("F541", f"partial_rotary_factor is {shown(factor)}; it must lie in (0, 1]", keys.at(key))
    turned = int(width * factor)
    if turned != width and rule.partial is None:
        message = f"partial_rotary_factor is {factor}, but this family turns the whole head"
        raise LadingError("F534", message, keys.at(key))
    return turned


def _weigh_ropes(
    left: Unread,
    keys: Keys,
    ropes: Mapping[tuple[str, int], Rope],
    records: Mapping[str, Mapping[str, Any]],
) -> None:
    """Weigh the entries of rope records that their kinds do not read, and a second record that is passed over."""
    key = keys.rope_key()
    for (name, _), rope in ropes.items():
        record = records[name]
        for entry in unread_keys({**record, "rope_type": rope.kind}):
            if f"{IN_ROPE}{entry}" not in keys.seen:
                _weigh_entry(left, f"{key}.{entry}", entry, record[entry], rope, keys.at(key))
    other = keys.record("rope_parameters") if key == "rope_scaling" else {}
    stated = keys.record(key)
    if any(isinstance(value, dict) for value in other.values()):
        left.refuse("rope_parameters", other, "rope_scaling stands beside it, and only one of both can count")
    elif any(stated.get(name) != value for name, value in other.items()):
        left.note("rope_parameters", "numbers")
        text = "rope_parameters is not used where rope_scaling stands"
        left.warnings.append(Diagnostic("F560", text, keys.at("rope_parameters"), severity="warning"))


def _weigh_entry(left: Unread, full: str, name: str, value: Any, rope: Rope, where: str) -> None:
    weight = weigh_rope(name, value)
    if name != "alpha" and any(name in (*kind.needs, *kind.reads) for kind in KINDS.values()):
        left.note(full, "numbers")
        text = f"{shown(name)} is not used by a rope of kind {rope.kind!r}"
        left.warnings.append(Diagnostic("F560", text, where, severity="warning"))
    elif weight == "numbers":
        left.refuse(full, value)
    else:
        left.note(full, weight)
