"""The contract of a compiled model: what it expects, what it consists of, and how far it was really tested.

``contract.json`` lies beside the compiled model and is made from the same objects. An application reads it and checks
what it is about to feed, so that a missing or misshapen input is a named error in Python, not a crash in native code:

    from backends.contract import check_feed, read

The dataclasses below are the one definition. Reading, writing and the published JSON Schema (`schema`, stored as
``contract.schema.json``) are derived from their annotations. Needs nothing but numpy. Fields: ``docs/contract.md``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from reprlib import repr as short_repr
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

import numpy as np

from ir.diag import Diagnostic, LadingError, suggest

CONTRACT_FILE = "contract.json"
CONTRACT_VERSION = "1.0"
SCHEMA_ID = "urn:lading:contract:1.0"
DTYPES = {"bool": "bool", "i8": "int8", "u8": "uint8", "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32",
          "i64": "int64", "u64": "uint64", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}
"""Element types of inputs and outputs: name in the contract -> name in numpy."""

# ---- from annotations to a reader and a schema --------------------------------------------------------------------


@dataclass(frozen=True)
class _Limits:
    """What an annotation says beyond its type.

    `low`, `high`, `pattern` and `words` bound a scalar; `length` is the least number of characters or items, `unique`
    says that no item comes twice, and `sort` is the key of a list whose order has no meaning. `types` are the JSON
    types of a value that is kept as it is.
    """

    low: float | None = None
    high: float | None = None
    pattern: str | None = None
    words: tuple[str, ...] = ()
    length: int = 0
    unique: bool = False
    types: tuple[str, ...] = ()
    sort: Callable[[Any], Any] | None = None

    def schema(self) -> dict[str, Any]:
        """The limits of a scalar in the words of JSON Schema."""
        rows = {"minimum": self.low, "maximum": self.high, "pattern": self.pattern, "minLength": self.length or None}
        return {key: value for key, value in rows.items() if value is not None}

    def broken(self, value: Any) -> bool:
        """True when a scalar of the right type lies outside the limits."""
        if self.words:
            return value not in self.words
        if self.pattern is not None:
            return re.search(self.pattern, value) is None
        if self.length:
            return len(value) < self.length
        return (self.low is not None and value < self.low) or (self.high is not None and value > self.high)

    def __str__(self) -> str:
        if self.words:
            return "one of " + ", ".join(self.words)
        if self.pattern is not None:
            return f"of the form {self.pattern}"
        if self.length:
            return f"at least {self.length} long"
        low = "" if self.low is None else f"at least {self.low}"
        return " and ".join(part for part in (low, "" if self.high is None else f"at most {self.high}") if part)


_FREE = _Limits()


def _whole(pattern: str) -> str:
    """A pattern that has to cover a whole text; the tail is for engines whose ``$`` allows a final line break."""
    return f"^{pattern}$(?!\\n)"


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


_FOLDER_PART = r"(?!\.{1,2}(?:/|$))[^/\\:\u0000-\u001f]+"
_SCALARS = ("string", "number", "boolean", "null")
Count = Annotated[int, _Limits(low=0)]
Positive = Annotated[int, _Limits(low=1)]
Size = Annotated[float, _Limits(low=0)]
Fraction = Annotated[float, _Limits(low=0, high=1)]
Name = Annotated[str, _Limits(length=1)]
Release = Annotated[str, _Limits(pattern=_whole(r"[0-9]+\.[0-9]+\.[0-9]+"))]
Digest = Annotated[str, _Limits(pattern=_whole("[0-9a-f]{64}"))]
RelativePath = Annotated[str, _Limits(pattern=_whole(f"{_FOLDER_PART}(?:/{_FOLDER_PART})*"))]
Moment = Annotated[str, _Limits(pattern=_whole("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"))]
Code = Annotated[str, _Limits(pattern=_whole("[A-Z][0-9]{3}"))]
DTypeName = Annotated[str, _Limits(words=tuple(DTYPES))]
Releases = Annotated[tuple[Release, ...], _Limits(unique=True, sort=_version)]
DefaultValue = Annotated[int | float | bool | None, _Limits(types=("number", "boolean", "null"))]
Setting = Annotated[Any, _Limits(types=(*_SCALARS, "array"))]
Memory = Literal["low", "normal", "high"]
Precision = Literal["low", "normal", "high"]

_Reader = Callable[[Any, str, list[Diagnostic]], Any]


class _Codec(NamedTuple):
    """How one annotation is read from parsed JSON: type test, reader of a value at a pointer, and JSON Schema."""

    takes: Callable[[Any], bool]
    read: _Reader
    schema: dict[str, Any]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


_TAKES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
_CASTS: dict[str, Callable[[Any], Any]] = {"integer": int, "number": float}
_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}


def _wrong_type(value: Any, at: str, expected: str) -> Diagnostic:
    return Diagnostic("C804", f"{short_repr(value)} is not of type {expected}", at)


def _scalar(kind: str, limits: _Limits) -> _Codec:
    takes, cast = _TAKES[kind], _CASTS.get(kind, lambda value: value)

    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not takes(value):
            problems.append(_wrong_type(value, at, kind))
        elif kind == "number" and not _is_finite(value):
            problems.append(Diagnostic("C805", f"{short_repr(value)} is not a finite number", at))
        elif limits.broken(value):
            hint = suggest(value, limits.words) if limits.words else ""
            problems.append(Diagnostic("C805", f"{short_repr(value)} is not {limits}", at, hint))
        else:
            return cast(value)
        return None

    return _Codec(takes, read, {"enum": list(limits.words)} if limits.words else {"type": kind, **limits.schema()})


def _raw(types: tuple[str, ...]) -> _Codec:
    """JSON kept as it is: a scalar, or a list of scalars where `types` allows arrays."""

    def takes(value: Any) -> bool:
        return any(_TAKES[kind](value) for kind in types)

    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        inner = value if isinstance(value, list) and takes(value) else [value]
        allowed = _SCALARS if inner is value else types
        for item in inner:
            if not any(_TAKES[kind](item) for kind in allowed):
                problems.append(_wrong_type(item, at, " or ".join(allowed)))
            elif isinstance(item, float) and not math.isfinite(item):
                problems.append(Diagnostic("C805", f"{item} is not a finite number", at))
        return tuple(value) if inner is value else value

    items = {"items": {"type": list(_SCALARS)}} if "array" in types else {}
    return _Codec(takes, read, {"type": list(types), **items})


def _array(item: _Codec, limits: _Limits) -> _Codec:
    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not isinstance(value, list):
            problems.append(_wrong_type(value, at, "array"))
            return None
        before = len(problems)
        result = tuple(item.read(part, f"{at}/{index}", problems) for index, part in enumerate(value))
        if len(value) < limits.length:
            problems.append(Diagnostic("C805", f"needs at least {limits.length} item", at))
        if limits.unique and len(problems) == before and len(set(result)) < len(result):
            problems.append(Diagnostic("C805", "lists an item twice", at))
        return result

    extra = ({"minItems": limits.length} if limits.length else {}) | ({"uniqueItems": True} if limits.unique else {})
    return _Codec(_TAKES["array"], read, {"type": "array", "items": item.schema, **extra})


def _table(item: _Codec) -> _Codec:
    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not isinstance(value, dict):
            problems.append(_wrong_type(value, at, "object"))
            return None
        return {key: item.read(part, f"{at}/{_escape(key)}", problems) for key, part in value.items()}

    return _Codec(_TAKES["object"], read, {"type": "object", "additionalProperties": item.schema})


def _either(parts: list[_Codec]) -> _Codec:
    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        for part in parts:
            if part.takes(value):
                return part.read(value, at, problems)
        return parts[0].read(value, at, problems)

    def takes(value: Any) -> bool:
        return any(part.takes(value) for part in parts)

    return _Codec(takes, read, {"anyOf": [part.schema for part in parts]})


def _limits(hint: Any) -> _Limits:
    return next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, _Limits)), _FREE)


def _codec(hint: Any, limits: _Limits = _FREE) -> _Codec:
    """The codec of an annotation: a scalar, Literal, Annotated, union, tuple[X, ...], dict[str, X] or a record."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = _limits(hint)
        return _raw(limits.types) if limits.types else _codec(parts[0], limits)
    if origin is Literal:
        return _scalar("string", _Limits(words=parts))
    if origin is tuple:
        return _array(_codec(parts[0]), limits)
    if origin is dict:
        return _table(_codec(parts[1]))
    if origin in (Union, UnionType):
        return _either([_codec(part) for part in parts])
    return _scalar(_NAMES[hint], limits) if hint in _NAMES else _record(hint)


@cache
def _record(cls: type[_Json]) -> _Codec:
    """The codec of a dataclass: an object with exactly its fields."""
    hints = get_type_hints(cls, include_extras=True)
    codecs = {item.name: _codec(hints[item.name]) for item in fields(cls)}  # type: ignore[arg-type]

    def read(value: Any, at: str, problems: list[Diagnostic]) -> Any:
        if not isinstance(value, dict):
            problems.append(_wrong_type(value, at, "object"))
            return None
        before = len(problems)
        if value.keys() != codecs.keys():
            problems += _field_problems(value, codecs, at)
        found = {name: codec.read(value[name], f"{at}/{name}", problems)
                 for name, codec in codecs.items() if name in value}
        return cls(**found) if len(problems) == before else None

    return _Codec(_TAKES["object"], read, {"$ref": f"#/$defs/{cls.__name__}"})


def _field_problems(value: Mapping[str, Any], known: Mapping[str, Any], at: str) -> Iterator[Diagnostic]:
    for name in known:
        if name not in value:
            yield Diagnostic("C801", f"field {name!r} is missing", f"{at}/{name}")
    for name in value:
        if name not in known:
            near = suggest(name, list(known))
            yield Diagnostic("C802", f"field {name!r} is not known", f"{at}/{_escape(name)}", near)


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _plain(value: Any) -> Any:
    """A field value as JSON data."""
    if isinstance(value, _Json):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(value[key]) for key in sorted(value)}
    return value


class _Json:
    """Base of the records: strict reading, plain writing, and a fixed order of what has none."""

    def __post_init__(self) -> None:
        for name, key in _orders(type(self)):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name), key=key)))

    def to_json(self) -> dict[str, Any]:
        """The record as JSON data: every field in order of declaration, tables sorted by key."""
        return _plain(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The record of parsed JSON.

        Raises:
            LadingError: with every problem found; `where` of each is ``#`` and the JSON pointer of the place.
        """
        problems: list[Diagnostic] = []
        result = _record(cls).read(data, "#", problems)
        if problems:
            raise LadingError.of(problems)
        return result


@cache
def _orders(cls: type[_Json]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    rows = ((name, _limits(hint).sort) for name, hint in get_type_hints(cls, include_extras=True).items())
    return tuple((name, key) for name, key in rows if key is not None)


# ---- the records --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Compiler(_Json):
    """The program that wrote the model."""

    name: Annotated[Name, "name of the compiler"]
    version: Annotated[Name, "its version"]


@dataclass(frozen=True, kw_only=True)
class Target(_Json):
    """What the model was compiled for."""

    profile: Annotated[Name, "name of the runtime profile"]
    releases: Annotated[
        tuple[Release, ...], _Limits(unique=True, length=1, sort=_version),
        "MNN releases that are promised to load the model and to give the same logits"
    ]


@dataclass(frozen=True, kw_only=True)
class Model(_Json):
    """The model that was compiled; figures that the family does not have are null."""

    name: Annotated[Name, "name of the checkpoint"]
    family: Annotated[Name | None, "model family, as in the checkpoint's model_type"] = None
    layers: Annotated[Count | None, "decoder layers"] = None
    hidden: Annotated[Count | None, "width of the hidden state"] = None
    heads: Annotated[Count | None, "query heads"] = None
    kv_heads: Annotated[Count | None, "key and value heads"] = None
    head_dim: Annotated[Count | None, "width of one head"] = None
    vocab: Annotated[Count | None, "rows of the vocabulary matrix"] = None
    max_position: Annotated[Count | None, "longest sequence, in tokens"] = None
    parameters: Annotated[Count | None, "weights of the checkpoint, tied ones counted once"] = None


@dataclass(frozen=True, kw_only=True)
class Source(_Json):
    """One file that the model was compiled from."""

    file: Annotated[RelativePath, "path relative to the checkpoint folder"]
    bytes: Annotated[Count, "size of the file"]
    digest: Annotated[Digest, "SHA-256, in lower-case hexadecimal"]
    digest_of: Annotated[
        Literal["content", "header"],
        "what was digested: the whole file, or of a safetensors file its length word and header alone"
    ]


@dataclass(frozen=True, kw_only=True)
class ShapeForm(_Json):
    """One shape that an input or output may have."""

    shape: Annotated[
        tuple[Count | Name, ...], "one item per axis: a fixed size or the name of a dimension; [] is a scalar"
    ]
    releases: Annotated[Releases, "releases that use this form; empty means all"] = ()

    def __str__(self) -> str:
        return f"[{', '.join(str(axis) for axis in self.shape)}]"


@dataclass(frozen=True, kw_only=True)
class ValueRange(_Json):
    """Inclusive range of the values of an integer input."""

    min: Annotated[int | None, "smallest allowed value; null means unbounded"] = None
    max: Annotated[int | None, "largest allowed value; null means unbounded"] = None


@dataclass(frozen=True, kw_only=True)
class Discovery(_Json):
    """Why the compiler declared something that the source model did not."""

    by: Annotated[Name, "name of the pass"]
    kind: Annotated[
        Literal["runtime-feeds", "frozen-by-tracing", "shape-computed", "whole-sequence", "kv-cache", "renamed"],
        "fed by the runtime; a constant that tracing had frozen; computed from shapes in the source; the source gave "
        "the whole sequence; past keys and values that the runtime keeps; another name in the source"
    ]
    reason: Annotated[str, "one sentence for people"]
    node: Annotated[str | None, "source node or tensor that showed it"] = None


@dataclass(frozen=True, kw_only=True)
class Input(_Json):
    """One tensor that has to be fed."""

    name: Annotated[Name, "name of the tensor"]
    dtype: Annotated[DTypeName, "element type"]
    shapes: Annotated[tuple[ShapeForm, ...], _Limits(length=1), "every form that is accepted"]
    meaning: Annotated[str, "what the values mean"]
    default: Annotated[
        DefaultValue,
        "value of every element that makes the model behave like its source; a runtime does not fill it in"
    ] = None
    values: Annotated[ValueRange | None, "allowed values of an integer input; null means any"] = None
    discovered: Annotated[Discovery | None, "null for an input of the source model"] = None


@dataclass(frozen=True, kw_only=True)
class Output(_Json):
    """One tensor that the model returns."""

    name: Annotated[Name, "name of the tensor"]
    dtype: Annotated[DTypeName, "element type"]
    shapes: Annotated[tuple[ShapeForm, ...], _Limits(length=1), "every form that occurs"]
    meaning: Annotated[str, "what the values mean"]
    discovered: Annotated[Discovery | None, "null for an output of the source model"] = None


@dataclass(frozen=True, kw_only=True)
class Dimension(_Json):
    """A named size; all inputs that use the name have to agree on it."""

    low: Annotated[Count, "smallest size"] = 0
    high: Annotated[Count | None, "largest size; null means unbounded"] = None
    multiple_of: Annotated[Positive, "the size is a multiple of this"] = 1
    sum_of: Annotated[
        tuple[Name, ...], _Limits(unique=True), "dimensions that add up to this one; empty for a free one"
    ] = ()
    meaning: Annotated[str, "what is counted"]


@dataclass(frozen=True, kw_only=True)
class KVCache(_Json):
    """Keys and values of earlier tokens, kept by the runtime and never fed."""

    layers: Annotated[Count, "layers that keep them"]
    dtype: Annotated[DTypeName, "element type of the figure below"]
    bytes_per_token: Annotated[Count, "growth per token, all layers together"]
    past: Annotated[Name, "the dimension that counts the tokens in the cache"]


@dataclass(frozen=True, kw_only=True)
class Signature(_Json):
    """What is fed, what comes back and what is kept in between."""

    inputs: Annotated[tuple[Input, ...], "in the order of the runtime's list; matched by name"]
    outputs: Annotated[tuple[Output, ...], "in the order of the runtime's list; matched by name"]
    dims: Annotated[dict[str, Dimension], "every named dimension"] = field(default_factory=dict)
    state: Annotated[KVCache | None, "null for a model without a cache"] = None

    @cached_property
    def _plans(self) -> dict[str | None, tuple[_Plan, ...]]:
        return {}


@dataclass(frozen=True, kw_only=True)
class FileEntry(_Json):
    """One file of the model folder."""

    path: Annotated[RelativePath, "path relative to the folder, with forward slashes"]
    bytes: Annotated[Count, "size of the file"]
    sha256: Annotated[Digest, "digest of the whole file, in lower-case hexadecimal"]
    role: Annotated[
        Literal["model", "weights", "embedding", "tokenizer", "config", "llm_config", "template", "license", "other"],
        "what the file is for"
    ]

    @classmethod
    def of(cls, folder: str | os.PathLike[str], path: str, role: str) -> FileEntry:
        """The entry of a file that exists; OSError when it cannot be read."""
        full = Path(folder, path)
        return cls(path=path, bytes=full.stat().st_size, sha256=_sha256(full), role=role)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Storage(_Json):
    """How the numbers of a weight are stored."""

    bits: Annotated[Positive, "bits of one stored number"]
    block: Annotated[Count, "columns that share one scale; 0 means the whole row"] = 0
    symmetric: Annotated[bool, "true when the codes lie evenly around zero"] = True
    zero: Annotated[Literal["int", "float", "none"], "kind of the stored zero points"] = "none"
    scale_dtype: Annotated[DTypeName | None, "element type of the scales; null without scales"] = None
    method: Annotated[Name, "how the codes were chosen, such as cast, rtn, gptq"]
    layout: Annotated[Name, "byte layout in the file, such as mnn-dense-codes, mnn-f16, rows-bf16"]


@dataclass(frozen=True, kw_only=True)
class WeightError(_Json):
    """Distance of the stored weight from the original."""

    rms_relative: Annotated[Size, "root mean square of the difference, divided by that of the original"]
    max_abs: Annotated[Size, "largest absolute difference"]


@dataclass(frozen=True, kw_only=True)
class WeightEntry(_Json):
    """Where a weight lies and what it lost."""

    name: Annotated[Name, "key in the checkpoint, or the key that a tied weight would have there"]
    file: Annotated[RelativePath, "one of the files of the folder"]
    offset: Annotated[Count, "first byte in that file"]
    bytes: Annotated[Count, "bytes in that file, scales and header included"]
    shape: Annotated[tuple[Count, ...], "shape of the decoded weight"]
    storage: Annotated[Storage, "how it is stored"]
    shared_with: Annotated[Name | None, "name of the weight whose bytes these are (tied weights)"] = None
    error: Annotated[WeightError | None, "null when it was not measured"] = None


@dataclass(frozen=True, kw_only=True)
class PassCounts(_Json):
    """One pass of the pipeline."""

    name: Annotated[Name, "name of the pass"]
    counts: Annotated[dict[str, int], "what it did, by name"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pipeline(_Json):
    """The passes that made the model."""

    text: Annotated[str, "canonical text of the pipeline; running it on the sources gives the same bytes"]
    passes: Annotated[tuple[PassCounts, ...], "in order of execution"] = ()


@dataclass(frozen=True, kw_only=True)
class Requirements(_Json):
    """What a runtime has to offer and how it has to be configured."""

    min_release: Annotated[Release, "oldest release that runs the model"]
    memory: Annotated[Memory | None, "recommended memory setting; null when it makes no difference"] = None
    keys: Annotated[
        dict[str, str], "configuration keys that matter, each with its reason"
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Runtime(_Json):
    """Requirements, and the settings that were written into the configuration."""

    requires: Annotated[Requirements, "what the runtime has to offer"]
    settings: Annotated[
        dict[str, Setting], "runtime settings as written; never sampling defaults"
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenizerFile(_Json):
    """The tokenizer file for a range of releases."""

    file: Annotated[RelativePath, "one of the files of the folder"]
    releases: Annotated[Releases, "releases that read it; empty means all"] = ()


@dataclass(frozen=True, kw_only=True)
class Inexact(_Json):
    """Releases whose tokenizer gives other ids than the original one."""

    releases: Annotated[Releases, "releases concerned; empty means all"] = ()
    differing: Annotated[Count | None, "test strings that got other ids; null when none were tried"] = None
    of: Annotated[Positive | None, "test strings tried; null when none were"] = None
    reasons: Annotated[tuple[str, ...], "why, one sentence each"] = ()


@dataclass(frozen=True, kw_only=True)
class Tokenizer(_Json):
    """How text becomes ids."""

    form: Annotated[Name, "kind of tokenizer, such as byte-level-bpe"]
    files: Annotated[tuple[TokenizerFile, ...], "files of the folder"] = ()
    inexact: Annotated[tuple[Inexact, ...], "known differences from the original tokenizer"] = ()


@dataclass(frozen=True, kw_only=True)
class RunSettings(_Json):
    """Runtime settings of a real run."""

    memory: Annotated[Memory, "memory setting"]
    precision: Annotated[Precision, "precision setting"]
    threads: Annotated[Positive, "threads"]


@dataclass(frozen=True, kw_only=True)
class Verification(_Json):
    """One real run of the finished files. Never filled by anything else."""

    release: Annotated[Release, "MNN release that ran"]
    platform: Annotated[Name, "operating system and processor"]
    settings: Annotated[RunSettings, "how it was configured"]
    reference: Annotated[
        Literal["float", "decoded weights"],
        "compared with the original weights in float, or with the stored weights decoded to float"
    ]
    prompt_tokens: Annotated[Positive, "tokens of the prompt"]
    max_abs_error: Annotated[Size, "largest absolute difference of a logit"]
    kl: Annotated[float, "mean Kullback-Leibler divergence per position, in nats, reference first"]
    top1: Annotated[Fraction, "share of the positions whose most likely token agrees"]
    perplexity: Annotated[Size | None, "perplexity on the evaluation text; null without one"] = None
    perplexity_reference: Annotated[Size | None, "the same for the reference"] = None
    decode_tokens: Annotated[Count | None, "tokens decoded greedily after the prompt; null when none were"] = None
    decode_equal_tokens: Annotated[Count | None, "how many of them came before the first difference"] = None


@dataclass(frozen=True, kw_only=True)
class Notice(_Json):
    """A warning of the compiler."""

    code: Annotated[Code, "diagnostic code"]
    message: Annotated[str, "what was found"]
    where: Annotated[str, "tensor, node, file or option concerned; may be empty"] = ""
    hint: Annotated[str, "what to do about it; may be empty"] = ""


def _weight_order(weight: WeightEntry) -> tuple[str, int, str]:
    return weight.file, weight.offset, weight.name


def _run_order(run: Verification) -> tuple[tuple[int, ...], str]:
    return _version(run.release), json.dumps(run.to_json())


@dataclass(frozen=True, kw_only=True)
class Contract(_Json):
    """Everything that is known about a compiled model."""

    contract_version: Annotated[Literal["1.0"], "version of this format"] = CONTRACT_VERSION
    compiler: Annotated[Compiler, "who wrote the model"]
    created: Annotated[
        Moment | None, "time of writing in UTC; null unless asked for, so that the same input gives the same bytes"
    ] = None
    target: Annotated[Target, "what it was compiled for"]
    model: Annotated[Model, "what was compiled"]
    sources: Annotated[tuple[Source, ...], _Limits(sort=attrgetter("file")), "the files it was compiled from"]
    config_digest: Annotated[Digest | None, "SHA-256 of the checkpoint's config.json; null without one"] = None
    signature: Annotated[Signature, "inputs, outputs, dimensions and state"]
    files: Annotated[
        tuple[FileEntry, ...], _Limits(sort=attrgetter("path")), "every file of the folder but this one"
    ]
    weights: Annotated[tuple[WeightEntry, ...], _Limits(sort=_weight_order), "every stored weight"]
    pipeline: Annotated[Pipeline, "how it was made"]
    runtime: Annotated[Runtime, "what it needs to run"]
    tokenizer: Annotated[Tokenizer | None, "null for a model without text"] = None
    verified: Annotated[tuple[Verification, ...], _Limits(sort=_run_order), "real runs of the finished files"] = ()
    warnings: Annotated[tuple[Notice, ...], "what the compiler warned of"] = ()

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The contract of parsed JSON, references between its parts checked.

        Raises:
            LadingError: with every problem found; `where` of each is ``#`` and the JSON pointer of the place.
        """
        result, problems = _decode(data)
        if problems:
            raise LadingError.of(problems)
        return result  # type: ignore[return-value]


# ---- reading, writing, validating ---------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the format, made from the records; stored as ``contract.schema.json``."""
    records = sorted(_Json.__subclasses__(), key=attrgetter("__name__"))
    definitions = {cls.__name__: _record_schema(cls) for cls in records}
    title = f"Contract of a compiled model, version {CONTRACT_VERSION}"
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, "title": title}
    return {**head, **definitions.pop("Contract"), "$defs": definitions}


def _record_schema(cls: type[_Json]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    rows = {name: {**_codec(hint).schema, "description": hint.__metadata__[-1]} for name, hint in hints.items()}
    return {"description": (cls.__doc__ or "").strip(), "type": "object", "properties": rows,
            "required": list(rows), "additionalProperties": False}


def validate(data: Any) -> list[Diagnostic]:
    """Every problem of parsed JSON as a contract, each with ``#`` and its JSON pointer; empty when there is none.

    Structure (codes C801 to C805) is what the JSON Schema says too; when it is right, the references between the
    parts are checked (C806), which a schema cannot say.
    """
    return _decode(data)[1]


def _decode(data: Any) -> tuple[Contract | None, list[Diagnostic]]:
    version = data.get("contract_version") if isinstance(data, dict) else None
    if isinstance(version, str) and version != CONTRACT_VERSION:
        message = f"contract version {short_repr(version)} is not known, only {CONTRACT_VERSION}"
        return None, [Diagnostic("C803", message, "#/contract_version", "read it with the release that wrote it")]
    problems: list[Diagnostic] = []
    contract = _record(Contract).read(data, "#", problems)
    return contract, problems or [Diagnostic("C806", text, f"#{at}") for at, text in _disagreements(data)]


def _disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Pointer and message for each reference between parts that does not hold."""
    yield from _signature_disagreements(data["signature"])
    yield from _file_disagreements(data)
    yield from _release_disagreements(data)


def _repeated(rows: Iterable[Mapping[str, Any]], key: str, at: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for index, row in enumerate(rows):
        if row[key] in seen:
            yield f"{at}/{index}/{key}", f"{row[key]!r} is there twice"
        seen.add(row[key])


def _signature_disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dims, at = data["dims"], "/signature"
    for side in ("inputs", "outputs"):
        yield from _repeated(data[side], "name", f"{at}/{side}")
        for index, port in enumerate(data[side]):
            for number, form in enumerate(port["shapes"]):
                for axis, size in enumerate(form["shape"]):
                    if isinstance(size, str) and size not in dims:
                        yield (f"{at}/{side}/{index}/shapes/{number}/shape/{axis}",
                               f"dimension {size!r} is not in dims")
    for index, port in enumerate(data["inputs"]):
        yield from _value_disagreements(port, f"{at}/inputs/{index}")
    for name, row in dims.items():
        if row["high"] is not None and row["high"] < row["low"]:
            yield f"{at}/dims/{_escape(name)}", f"high {row['high']} is below low {row['low']}"
        for part in row["sum_of"]:
            if part not in dims or part == name:
                yield f"{at}/dims/{_escape(name)}/sum_of", f"{part!r} is not another dimension"
    if data["state"] is not None and data["state"]["past"] not in dims:
        yield f"{at}/state/past", f"dimension {data['state']['past']!r} is not in dims"


def _value_disagreements(port: Mapping[str, Any], at: str) -> Iterator[tuple[str, str]]:
    values, default, integer = port["values"], port["default"], port["dtype"][0] in "iu"
    if values is not None and not integer:
        yield f"{at}/values", f"a range of values is for integers, not for {port['dtype']}"
    low, high = (-math.inf, math.inf) if values is None else (
        -math.inf if values["min"] is None else values["min"], math.inf if values["max"] is None else values["max"])
    if high < low:
        yield f"{at}/values", f"max {high} is below min {low}"
    if default is None:
        return
    if isinstance(default, bool) is not (port["dtype"] == "bool") or (integer and default != int(default)):
        yield f"{at}/default", f"{short_repr(default)} is not of type {port['dtype']}"
    elif not low <= default <= high:
        yield f"{at}/default", f"{default} is not in {low}..{high}"


def _file_disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sizes = {row["path"]: row["bytes"] for row in data["files"]}
    names = {row["name"] for row in data["weights"]}
    yield from _repeated(data["files"], "path", "/files")
    yield from _repeated(data["sources"], "file", "/sources")
    for index, row in enumerate(data["files"]):
        if row["path"] == CONTRACT_FILE:
            yield f"/files/{index}/path", "the contract cannot list itself"
    for index, row in enumerate(data["weights"]):
        if row["file"] not in sizes:
            yield f"/weights/{index}/file", f"{row['file']!r} is not in files"
        elif row["offset"] + row["bytes"] > sizes[row["file"]]:
            end, size = row["offset"] + row["bytes"], sizes[row["file"]]
            yield f"/weights/{index}/bytes", f"the weight ends at byte {end} of {row['file']!r}, which has {size}"
        if row["shared_with"] is not None and row["shared_with"] not in names:
            yield f"/weights/{index}/shared_with", f"{row['shared_with']!r} is not in weights"
    for index, row in enumerate((data["tokenizer"] or {"files": ()})["files"]):
        if row["file"] not in sizes:
            yield f"/tokenizer/files/{index}/file", f"{row['file']!r} is not in files"


def _release_disagreements(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    promised, tokenizer = data["target"]["releases"], data["tokenizer"] or {"files": (), "inexact": ()}
    places = [(f"/tokenizer/{part}/{index}/releases", row["releases"])
              for part in ("files", "inexact") for index, row in enumerate(tokenizer[part])]
    places += [(f"/signature/{side}/{index}/shapes/{number}/releases", form["releases"])
               for side in ("inputs", "outputs") for index, port in enumerate(data["signature"][side])
               for number, form in enumerate(port["shapes"])]
    for at, releases in places:
        for release in releases:
            if release not in promised:
                yield at, f"release {release} is not promised by the target"
    for index, port in enumerate(data["signature"]["inputs"]):
        served = {release for form in port["shapes"] for release in form["releases"] or promised}
        for release in promised:
            if release not in served:
                yield f"/signature/inputs/{index}/shapes", f"there is no form for release {release}"
    for index, row in enumerate(tokenizer["inexact"]):
        if (row["differing"] or 0) > (row["of"] or 0):
            yield f"/tokenizer/inexact/{index}/differing", f"{row['differing']} of {row['of']} strings"


def dumps(contract: Contract) -> str:
    """The canonical text: fields in order of declaration, short parts on one line, a final line break.

    ValueError when `read` would refuse it, which is a mistake of the program that built the contract.
    """
    checked, problems = _decode(contract.to_json())
    if problems:
        raise ValueError("\n".join(str(problem) for problem in problems))
    return _layout(checked.to_json(), 0) + "\n"  # type: ignore[union-attr]


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def _layout(value: Any, indent: int, width: int = 120) -> str:
    if isinstance(value, dict):
        parts, ends = [f"{_quote(key)}: {_layout(item, indent + 2)}" for key, item in value.items()], "{}"
    elif isinstance(value, list):
        parts, ends = [_layout(item, indent + 2) for item in value], "[]"
    else:
        return _quote(value) if isinstance(value, str) else _ENCODE(value)
    if sum(len(part) + 2 for part in parts) + indent < width and not any("\n" in part for part in parts):
        return ends[0] + ", ".join(parts) + ends[1]
    gap = "\n" + " " * (indent + 2)
    return ends[0] + gap + ("," + gap).join(parts) + "\n" + " " * indent + ends[1]


def _quote(text: str) -> str:
    """A JSON string: readable, except where a lone surrogate (from a file name) cannot be written as UTF-8."""
    return json.dumps(text) if _LONE_SURROGATE.search(text) else _ENCODE(text)


def _place(path: str | os.PathLike[str]) -> Path:
    return Path(path, CONTRACT_FILE) if os.path.isdir(path) else Path(path)


def write(contract: Contract, path: str | os.PathLike[str]) -> None:
    """Write the canonical text to a file, or to ``contract.json`` in a folder; it is replaced at once or not at all.

    Raises:
        LadingError: C807 when the file cannot be written.
        ValueError: for a contract that could not be read back.
    """
    text, place = dumps(contract), _place(path)
    part = place.with_name(f"{place.name}.{os.getpid()}.part")
    try:
        part.write_bytes(text.encode())
        os.replace(part, place)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise LadingError("C807", f"the contract cannot be written: {error.strerror}", where=str(place)) from error


def read(path: str | os.PathLike[str]) -> Contract:
    """The contract in a file, or in ``contract.json`` of a folder.

    Raises:
        LadingError: C800 when it is not a readable JSON file, else every problem of `validate`.
    """
    place = _place(path)
    try:
        data = json.loads(place.read_bytes().decode(), object_pairs_hook=_object)
    except OSError as error:
        raise LadingError("C800", f"the contract cannot be read: {error.strerror}", where=str(place)) from error
    except (ValueError, RecursionError) as error:
        raise LadingError("C800", f"this is not a JSON file: {error}", where=str(place)) from error
    contract, problems = _decode(data)
    if problems:
        raise LadingError.of([Diagnostic(p.code, p.message, f"{place}{p.where}", p.hint) for p in problems])
    return contract  # type: ignore[return-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return result


# ---- checking a folder --------------------------------------------------------------------------------------------


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_files(contract: Contract, folder: str | os.PathLike[str], *, digests: bool = True) -> list[Diagnostic]:
    """What is wrong with a copy of the model folder: missing, changed and unreadable files; extra ones as warnings.

    Without `digests` only names and sizes are compared and no file is read.
    """
    root = Path(folder)
    if not root.is_dir():
        return [Diagnostic("C814", "there is no such folder", str(root))]
    listed = {entry.path for entry in contract.files}
    present = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    extra = sorted(present - listed - {CONTRACT_FILE})
    problems = [problem for entry in contract.files if (problem := _file_problem(entry, root, extra, digests))]
    message = "this file is not part of the model"
    return problems + [Diagnostic("C813", message, str(root / path), severity="warning") for path in extra]


def _file_problem(entry: FileEntry, root: Path, extra: list[str], digests: bool) -> Diagnostic | None:
    path = root / entry.path
    try:
        if not path.is_file():
            return Diagnostic("C810", f"the {entry.role} file is missing", str(path), suggest(entry.path, extra))
        size = path.stat().st_size
        if size != entry.bytes:
            return Diagnostic("C811", f"the {entry.role} file has {size} bytes instead of {entry.bytes}", str(path),
                              "copy it again")
        if digests and _sha256(path) != entry.sha256:
            return Diagnostic("C812", f"the {entry.role} file has other content than the compiler wrote", str(path),
                              "copy it again")
    except OSError as error:
        return Diagnostic("C814", f"the {entry.role} file cannot be read: {error.strerror}", str(path))
    return None


# ---- checking a feed ----------------------------------------------------------------------------------------------


class _Plan(NamedTuple):
    """An input made ready for checking; `numpy` is None for bf16, which numpy itself does not have."""

    spec: Input
    name: str
    numpy: np.dtype | None
    forms: tuple[tuple[int | str, ...], ...]


_Bound = dict[str, tuple[int, str]]
"""Dimension -> size and where it was seen, such as ``on axis 0 of input 'position_ids'``."""

_NUMPY = {name: None if name == "bf16" else np.dtype(numpy) for name, numpy in DTYPES.items()}


def check_feed(
    contract: Contract,
    feed: Mapping[str, Any],
    *,
    release: str | None = None,
    previous: int | None = None,
    values: bool = True,
) -> None:
    """Refuse a feed that the model cannot take, before native code sees it.

    Args:
        contract: what `read` returned.
        feed: input name -> numpy array, or whatever has `shape` and `dtype`, or a pair (shape, dtype). Values are
            looked at in numpy arrays and scalars only.
        release: MNN release that will run; only the forms of that release are accepted then.
        previous: tokens that the cache already holds; ValueError for a model without a cache.
        values: whether to look at values too (range of integers, finiteness of floats).

    Raises:
        LadingError: with every problem found (C820 to C832).
    """
    _, problems, sound = _inspect(contract, feed, release, previous)
    if values:
        for spec in sound:
            problems += _value_problems(spec, feed[spec.name])
    if problems:
        raise LadingError.of(problems)


def bind(
    contract: Contract, feed: Mapping[str, Any], *, release: str | None = None, previous: int | None = None
) -> dict[str, int]:
    """Sizes of the named dimensions of a feed, with those that follow from sums; arguments and errors of `check_feed`.

    Values are not looked at.
    """
    bound, problems, _ = _inspect(contract, feed, release, previous)
    if problems:
        raise LadingError.of(problems)
    return {name: size for name, (size, _) in bound.items()}


def _inspect(
    contract: Contract, feed: Mapping[str, Any], release: str | None, previous: int | None
) -> tuple[_Bound, list[Diagnostic], list[Input]]:
    """Bound dimensions, problems, and the inputs whose values may be looked at."""
    signature, problems, sound = contract.signature, [], []
    bound = {} if previous is None else _history(signature, previous)
    if release is not None and release not in contract.target.releases:
        known = ", ".join(contract.target.releases)
        problems.append(Diagnostic("C830", f"the model is not promised for release {release}, only for {known}"))
        release = None
    plans = signature._plans.get(release) or _make_plans(signature, release)
    present = 0
    for plan in plans:
        if plan.name not in feed:
            problems.append(_missing(plan))
            continue
        present += 1
        shape, dtype = _describe(feed[plan.name])
        if shape is None:
            message = f"input {plan.name!r} is {short_repr(feed[plan.name])}, which has no shape and dtype"
            problems.append(Diagnostic("C831", message, hint=f"pass a numpy array of {DTYPES[plan.spec.dtype]}"))
            continue
        if _is_dtype(plan, dtype):
            sound.append(plan.spec)
        else:
            message = f"input {plan.name!r} has dtype {dtype}, not {DTYPES[plan.spec.dtype]}"
            problems.append(Diagnostic("C822", message, hint=f"convert it with astype({DTYPES[plan.spec.dtype]!r})"))
        problems += _fit(plan, shape, bound)
    if present != len(feed):
        problems += _extra(feed, plans)
    problems += _sums(signature, bound)
    problems += _ranges(signature, bound)
    return bound, problems, sound


def _history(signature: Signature, previous: int) -> _Bound:
    if signature.state is None:
        raise ValueError("this model keeps no cache, so nothing can come before a feed")
    return {signature.state.past: (previous, "in the cache")}


def _make_plans(signature: Signature, release: str | None) -> tuple[_Plan, ...]:
    plans = []
    for item in signature.inputs:
        forms = [form.shape for form in item.shapes if not (release and form.releases) or release in form.releases]
        plans.append(_Plan(item, item.name, _NUMPY[item.dtype], tuple(dict.fromkeys(forms))))
    signature._plans[release] = tuple(plans)
    return signature._plans[release]


def _describe(item: Any) -> tuple[tuple[int, ...] | None, Any]:
    """Shape and dtype of a fed item; a shape of None when it has none."""
    try:
        shape, dtype = item if type(item) is tuple else (item.shape, item.dtype)
        return tuple(shape), dtype
    except (AttributeError, TypeError, ValueError):
        return None, None


def _is_dtype(plan: _Plan, dtype: Any) -> bool:
    """Compare with a numpy dtype, a scalar type, a name, or a dtype of another library that is named as in numpy."""
    if isinstance(dtype, np.dtype) and plan.numpy is not None:
        return dtype == plan.numpy
    text = getattr(dtype, "__name__", None) or str(dtype).rpartition(".")[2]
    return text in (plan.spec.dtype, DTYPES[plan.spec.dtype])


def _missing(plan: _Plan) -> Diagnostic:
    spec = plan.spec
    hint = f"feed {DTYPES[spec.dtype]} {_forms(plan)}"
    if spec.default is not None:
        hint += f"; {spec.default} is the default"
    return Diagnostic("C820", f"input {plan.name!r} is missing: {spec.meaning}", hint=hint)


def _shown(shape: Iterable[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _forms(plan: _Plan) -> str:
    return " or ".join(map(_shown, plan.forms))


def _extra(feed: Mapping[str, Any], plans: tuple[_Plan, ...]) -> Iterator[Diagnostic]:
    known = [plan.name for plan in plans]
    absent = [name for name in known if name not in feed]
    for name in feed:
        if name not in known:
            hint = suggest(str(name), absent) or f"the inputs are {', '.join(known)}"
            yield Diagnostic("C821", f"the model has no input {name!r}", hint=hint)


def _fit(plan: _Plan, shape: tuple[int, ...], bound: _Bound) -> list[Diagnostic]:
    """Bind the dimensions of one input; on failure the problems of the first form of its rank, and nothing bound."""
    first: list[Diagnostic] | None = None
    for form in plan.forms:
        if len(form) != len(shape):
            continue
        found: _Bound = {}
        problems = _fit_form(plan.name, form, shape, bound, found)
        if not problems:
            bound.update(found)
            return problems
        first = first or problems
    if first is not None:
        return first
    message = f"input {plan.name!r} has rank {len(shape)}, shape {_shown(shape)}; it takes {_forms(plan)}"
    return [Diagnostic("C823", message)]


def _fit_form(
    name: str, form: tuple[int | str, ...], shape: tuple[int, ...], bound: _Bound, found: _Bound
) -> list[Diagnostic]:
    problems = []
    for axis, want in enumerate(form):
        size = shape[axis]
        if type(want) is int:
            if size != want:
                message = f"input {name!r} has size {size} on axis {axis}, not {want}"
                problems.append(Diagnostic("C829", message, hint=f"its form is {_shown(form)}"))
            continue
        place = f"on axis {axis} of input {name!r}"
        other = bound.get(want) or found.get(want)
        if other is None:
            found[want] = (size, place)
        elif other[0] != size:
            message = f"dimension {want} is {size} {place}, but {other[0]} {other[1]}"
            problems.append(Diagnostic("C826", message, hint="both have to be the same"))
    return problems


def _sums(signature: Signature, bound: _Bound) -> list[Diagnostic]:
    """Bind the dimensions that follow from sums, then report the sums that do not come out."""
    sums = [(name, dim.sum_of) for name, dim in signature.dims.items() if dim.sum_of]
    known = -1
    while known < len(bound):
        known = len(bound)
        for name, parts in sums:
            _follow(name, parts, bound)
    problems = []
    for name, parts in sums:
        total, part = bound.get(name, (0, ""))[0], sum(bound[item][0] for item in parts if item in bound)
        complete = all(item in bound for item in parts)
        if name in bound and (total != part if complete else total < part):
            message = f"dimension {name} is {total} {bound[name][1]}, but {' + '.join(parts)} is "
            message += f"{part}" if complete else f"at least {part}"
            problems.append(Diagnostic("C832", message, hint=signature.dims[name].meaning))
    return problems


def _follow(name: str, parts: tuple[str, ...], bound: _Bound) -> None:
    unknown = [item for item in parts if item not in bound]
    known = sum(bound[item][0] for item in parts if item in bound)
    place = f"by {name} = {' + '.join(parts)}"
    if name not in bound and not unknown:
        bound[name] = (known, place)
    elif name in bound and len(unknown) == 1 and bound[name][0] >= known:
        bound[unknown[0]] = (bound[name][0] - known, place)


def _ranges(signature: Signature, bound: _Bound) -> list[Diagnostic]:
    problems = []
    for name, (size, place) in bound.items():
        dim = signature.dims[name]
        if size < dim.low or (dim.high is not None and size > dim.high):
            allowed = f"at least {dim.low}" if dim.high is None else f"{dim.low}..{dim.high}"
            problems.append(Diagnostic("C824", f"dimension {name} is {size} {place}; allowed is {allowed}",
                                       hint=dim.meaning))
        elif size % dim.multiple_of:
            message = f"dimension {name} is {size} {place}, which is no multiple of {dim.multiple_of}"
            problems.append(Diagnostic("C825", message, hint=dim.meaning))
    return problems


def _value_problems(spec: Input, item: Any) -> list[Diagnostic]:
    real = "f" in spec.dtype
    if not isinstance(item, np.ndarray | np.generic) or item.size == 0 or not (real or spec.values):
        return []
    array = np.asarray(item)
    good = np.isfinite(array) if real else _in_range(array, spec.values)  # type: ignore[arg-type]
    if good.all():
        return []
    place = np.argwhere(~good)[0].tolist()
    code, rule = ("C828", "it must be finite") if real else ("C827", f"allowed is {_span(spec.values)}")  # type: ignore
    at = f" at {place}" if place else ""
    count = int((~good).sum())
    more = f" (and {count - 1} more)" if count > 1 else ""
    return [Diagnostic(code, f"input {spec.name!r} holds {array[tuple(place)]}{at}{more}; {rule}", hint=spec.meaning)]


def _in_range(array: np.ndarray, values: ValueRange) -> np.ndarray:
    good = np.ones(array.shape, dtype=bool) if values.min is None else array >= values.min
    return good if values.max is None else good & (array <= values.max)


def _span(values: ValueRange) -> str:
    return f"{'' if values.min is None else values.min}..{'' if values.max is None else values.max}"
