"""What differs between two compilations, read from their contracts: weights, numbers, sizes, inputs, settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.contract import check_files
from ir.base.whole_files import sha256_of
from tools.inspect.essentials import AGAINST, ends_text, run_name, sampler_text
from tools.shared.cli import megabytes
from tools.shared.stored import bits_per_weight, storage_text

if TYPE_CHECKING:
    from backends.contract import Contract, Input, Output, Storage, Verification, WeightEntry
    from ir.base.diag import Diagnostic

NONE = "none"
"""Stands for what one side lacks."""


@dataclass(frozen=True)
class Change:
    """One thing that differs.

    Attributes:
        what: what it is, such as a file, a setting, or a measured number.
        before, after: in the first and in the second compilation, for people.
    """

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class WeightChange:
    """Weights that are stored otherwise in the same way.

    Attributes:
        before, after: how they are stored.
        patterns: their names, those of all layers as one with a star, those of some layers with their numbers.
        names: every single name.
        bytes: what they take before and after.
    """

    before: str
    after: str
    patterns: tuple[str, ...]
    names: tuple[str, ...]
    bytes: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """All differences of two compilations, in sections."""

    weights: tuple[WeightChange, ...]
    numbers: tuple[Change, ...]
    sizes: tuple[Change, ...]
    inputs: tuple[Change, ...]
    settings: tuple[Change, ...]
    generation: tuple[Change, ...]
    tokenizer: tuple[Change, ...]
    made: tuple[Change, ...]
    warnings: tuple[Change, ...]
    files: tuple[Change, ...] = ()

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"same": self.same, **asdict(self)}


def compare(one: Contract, two: Contract, folders: Sequence[Path | None] = (None, None)) -> Comparison:
    """The differences of two contracts, and of the files in their folders that are no longer as they were written."""
    return Comparison(
        weights=tuple(_weights(one.weights, two.weights)),
        numbers=tuple(_numbers(one, two)),
        sizes=tuple(_sizes(one, two)),
        inputs=tuple(_signature(one, two)),
        settings=tuple(_settings(one, two)),
        generation=tuple(_generation(one, two)),
        tokenizer=tuple(_tokenizer(one, two)),
        made=tuple(_made(one, two)),
        warnings=tuple(_warnings(one, two)),
        files=tuple(_files((one, two), folders)),
    )


# ---- weights ----


def _weights(ones: Sequence[WeightEntry], twos: Sequence[WeightEntry]) -> Iterator[WeightChange]:
    left, right = ({item.name: item for item in items} for items in (ones, twos))
    everything = list(dict.fromkeys([*left, *right]))
    groups: dict[tuple[str, str], list[str]] = {}
    for name in everything:
        words = _storages(left.get(name), right.get(name))
        if words is not None:
            groups.setdefault(words, []).append(name)
    for (before, after), names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        sums = [sum(_own_bytes(side.get(name)) for name in names) for side in (left, right)]
        yield WeightChange(before, after, tuple(patterns(names, everything)), tuple(names), (sums[0], sums[1]))


def _own_bytes(item: WeightEntry | None) -> int:
    return 0 if item is None or item.shared_with is not None else item.bytes


def _storages(one: WeightEntry | None, two: WeightEntry | None) -> tuple[str, str] | None:
    """How a weight is stored on both sides, in words that differ; None where nothing does."""
    if one is None or two is None:
        return tuple(NONE if item is None else storage_text(item.storage) for item in (one, two))  # type: ignore[return-value]
    details = [_details(one.storage), _details(two.storage)]
    details[0]["shared"], details[1]["shared"] = (
        f"the bytes of {item.shared_with}" if item.shared_with else "" for item in (one, two)
    )
    details[0]["shape"], details[1]["shape"] = (f"of shape {list(item.shape)}" for item in (one, two))
    other = [key for key in details[0] if details[0][key] != details[1][key]]
    texts = [storage_text(item.storage) for item in (one, two)]
    if texts[0] == texts[1] and not other:
        return None
    # Where width and block tell both apart, the rest follows from them.
    coded = one.storage.bits <= 8 and two.storage.bits <= 8
    kept = ("method", "symmetric", "shared", "shape") if coded else ("shared", "shape")
    shown = [key for key in other if texts[0] == texts[1] or key in kept]
    joined = [
        ", ".join(filter(None, [text, *(found[key] for key in shown)]))
        for text, found in zip(texts, details, strict=True)
    ]
    return joined[0], joined[1]


def _details(storage: Storage) -> dict[str, str]:
    integer = storage.bits <= 8
    return {
        "symmetric": ("symmetric" if storage.symmetric else "with zeros") if integer else "",
        "zero": f"{storage.zero} zeros" if integer else "",
        "scale": f"{storage.scale_dtype} scales" if integer else "",
        "method": storage.method if integer else "",
        "layout": storage.layout,
    }


def patterns(names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """Names with the numbers of layers as ``*``, or as ``{0-3,7}`` where those of other layers are not among them.

    Args:
        names: some names.
        everything: all names, these among them.
    """
    all_of: dict[str, set[str]] = {}
    for name in everything:
        all_of.setdefault(_starred(name), set()).add(name)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(_starred(name), []).append(name)
    texts = []
    for pattern, members in found.items():
        if pattern.count("*") != 1:
            texts += members if set(members) != all_of[pattern] else [pattern]
            continue
        if set(members) == all_of[pattern]:
            texts.append(pattern if len(members) > 1 else members[0])
        else:
            at = pattern.index("*")
            numbers = sorted(int(re.match(r"\d+", name[at:])[0]) for name in members)  # type: ignore[index]
            texts.append(pattern.replace("*", _spans(numbers)))
    return texts


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _spans(numbers: Sequence[int]) -> str:
    """Numbers as ``{0-3,7}``; one alone as itself."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [str(low) if low == high else f"{low}-{high}" for low, high in spans]
    return texts[0] if texts == [str(numbers[0])] else "{" + ",".join(texts) + "}"


# ---- the rest ----


def _roles(contract: Contract) -> dict[str, Verification]:
    """Real runs by what they stand for, so that those of two compilations with other settings correspond."""
    found: dict[str, Verification] = {}
    for run in contract.verified:
        found.setdefault(_role(contract, run), run)
    return found


def _role(contract: Contract, run: Verification) -> str:
    used, shipped = run.settings, contract.runtime.settings
    if used is None:
        return run_name(run)
    same = all(shipped.get(key, 0) == getattr(used, key) for key in ("memory", "precision", "dynamic_option"))
    if not same and (used.memory, used.precision) != ("normal", "high"):
        return run_name(run)
    return f"{run.release} {'as shipped' if same else 'in exact arithmetic'}, against {AGAINST[run.reference]}"


def _numbers(one: Contract, two: Contract) -> Iterator[Change]:
    left, right = _roles(one), _roles(two)
    fields = (
        ("KL", "kl", ".2e"), ("top-1", "top1", ".2%"), ("perplexity", "perplexity", ".3f"),
        ("perplexity of the reference", "perplexity_reference", ".3f"), ("max error", "max_abs_error", ".1e"),
    )  # fmt: skip
    for name in dict.fromkeys([*left, *right]):
        before, after = left.get(name), right.get(name)
        if before is None or after is None:
            yield Change(f"run on {name}", *("run" if run is not None else "not run" for run in (before, after)))
            continue
        for word, key, form in fields:
            found = (getattr(run, key) for run in (before, after))
            x, y = (NONE if value is None else format(value, form) for value in found)
            if x != y:
                yield Change(f"{word} on {name}", x, y)


def _sizes(one: Contract, two: Contract) -> Iterator[Change]:
    totals = [sum(item.bytes for item in contract.files) for contract in (one, two)]
    if totals[0] != totals[1]:
        yield Change("folder", *_sizes_apart(*totals))
    bits = [bits_per_weight(contract.weights) for contract in (one, two)]
    if bits[0] != bits[1]:
        yield Change("bits per weight", *(NONE if value is None else f"{value:.2f}" for value in bits))
    left, right = ({item.path: item for item in contract.files} for contract in (one, two))
    for path in sorted({*left, *right}):
        before, after = left.get(path), right.get(path)
        if before is None or after is None or before.bytes != after.bytes:
            yield Change(path, *_sizes_apart(*(None if item is None else item.bytes for item in (before, after))))
        elif before.sha256 != after.sha256:
            yield Change(path, megabytes(before.bytes), f"{megabytes(after.bytes)} of other content")


def _sizes_apart(before: int | None, after: int | None) -> tuple[str, str]:
    """Two sizes in words that differ: in bytes where larger units round them to the same."""
    texts = [NONE if size is None else megabytes(size) for size in (before, after)]
    if texts[0] == texts[1]:
        return f"{before:,} bytes", f"{after:,} bytes"
    return texts[0], texts[1]


def _signature(one: Contract, two: Contract) -> Iterator[Change]:
    for what in ("inputs", "outputs"):
        sides = [{item.name: _typed(item) for item in getattr(contract.signature, what)} for contract in (one, two)]
        yield from _mapping(what[:-1], *sides)
    dims = [
        {
            name: f"{dim.low}..{'' if dim.high is None else dim.high} step {dim.multiple_of}"
            for name, dim in contract.signature.dims.items()
        }
        for contract in (one, two)
    ]
    yield from _mapping("dimension", *dims)
    caches = [contract.signature.state for contract in (one, two)]
    words = [
        NONE if item is None else f"{item.bytes_per_token} bytes a token in {item.layers} layers" for item in caches
    ]
    if words[0] != words[1]:
        yield Change("cache", *words)


def _typed(item: Input | Output) -> str:
    return f"{item.dtype}{' or '.join(str(form) for form in item.shapes)}"


def _settings(one: Contract, two: Contract) -> Iterator[Change]:
    yield from _mapping("setting", *({k: str(v) for k, v in c.runtime.settings.items()} for c in (one, two)))
    needs = [
        {
            "oldest release": c.runtime.requires.min_release,
            "memory": str(c.runtime.requires.memory),
            **c.runtime.requires.keys,
        }
        for c in (one, two)
    ]
    yield from _mapping("needs", *needs)


def _generation(one: Contract, two: Contract) -> Iterator[Change]:
    sides: list[dict[str, str]] = []
    for contract in (one, two):
        found = contract.generation
        if found is None:
            sides.append({})
            continue
        side = {f"sampler in {item.file}": sampler_text(item) for item in found.samplers}
        side["ends at"] = ends_text(found)
        side |= {f"lost {item.setting}": f"{item.value} on {', '.join(item.releases) or 'all'}" for item in found.lost}
        sides.append(side)
    for side, contract in zip(sides, (one, two), strict=True):
        if contract.chat is not None:
            side["chat template"] = f"SHA-256 {contract.chat.written[:12]}"
    yield from _mapping("", *sides)


def _tokenizer(one: Contract, two: Contract) -> Iterator[Change]:
    forms = [NONE if contract.tokenizer is None else contract.tokenizer.form for contract in (one, two)]
    if forms[0] != forms[1]:
        yield Change("form", *forms)
    files = [
        {item.file: ", ".join(item.releases) or "all" for item in contract.tokenizer.files}
        if contract.tokenizer
        else {}
        for contract in (one, two)
    ]
    yield from _mapping("file", *files)
    inexact = [
        {
            ", ".join(item.releases) or "all": f"{item.differing} of {item.of} differ"
            for item in contract.tokenizer.inexact
        }
        if contract.tokenizer
        else {}
        for contract in (one, two)
    ]
    yield from _mapping("inexact on", *inexact)


def _made(one: Contract, two: Contract) -> Iterator[Change]:
    for what, values in (
        ("model", [contract.model.name for contract in (one, two)]),
        ("verdict", [NONE if contract.verdict is None else contract.verdict.text for contract in (one, two)]),
        ("compiler", [f"{contract.compiler.name} {contract.compiler.version}" for contract in (one, two)]),
        ("target", [f"{c.target.profile}: {', '.join(c.target.releases)}" for c in (one, two)]),
        ("passes", [contract.pipeline.text for contract in (one, two)]),
        ("config.json", [(contract.config_digest or NONE)[:12] for contract in (one, two)]),
        ("calibration", [_calibration(contract) for contract in (one, two)]),
    ):
        if values[0] != values[1]:
            yield Change(what, *values)
    facts = [{k: str(v) for k, v in contract.model.to_json().items() if k != "name"} for contract in (one, two)]
    yield from _mapping("model", *facts)
    sources = [{item.file: f"SHA-256 {item.digest[:12]}" for item in contract.sources} for contract in (one, two)]
    yield from _mapping("source", *sources)


def _calibration(contract: Contract) -> str:
    found = contract.calibration
    return NONE if found is None else f"{found.tokens} tokens, {found.digest[:12]}, limit {found.limit or NONE}"


def _warnings(one: Contract, two: Contract) -> Iterator[Change]:
    left, right = ({(item.code, item.message, item.where) for item in contract.warnings} for contract in (one, two))
    for code, message, where in sorted(left ^ right):
        there = (code, message, where) in left
        text = message if not where else f"{message}, {where}"
        yield Change(code, text if there else NONE, NONE if there else text)


WRITTEN = "as written"


def _files(contracts: Sequence[Contract], folders: Sequence[Path | None]) -> Iterator[Change]:
    """Files that were changed, removed or added after they were written, where they differ between the folders."""
    sides = []
    for contract, folder in zip(contracts, folders, strict=True):
        found = [] if folder is None else check_files(contract, folder)
        sides.append({str(Path(item.where).relative_to(folder)): _now(item) for item in found if folder is not None})
    for path in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = (side.get(path, WRITTEN) for side in sides)
        if before != after:
            yield Change(path, before, after)


def _now(item: Diagnostic) -> str:
    """What became of a file, with its digest where it can be read."""
    path = Path(item.where)
    text = f"{item.code}: {item.message}"
    with suppress(OSError):
        if item.code != "C814" and path.is_file():
            return f"{text}, SHA-256 {sha256_of(path)[:12]}"
    return text


def _mapping(word: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        x, y = before.get(key, NONE), after.get(key, NONE)
        if x != y:
            yield Change(f"{word} {key}".strip(), x, y)


# ---- text ----


def summary_of_weights(change: WeightChange) -> str:
    """How many weights, and what they take."""
    count = f"{len(change.names)} weight{'' if len(change.names) == 1 else 's'}"
    return f"{count}, {megabytes(change.bytes[0])} -> {megabytes(change.bytes[1])}"


__all__ = ["Change", "Comparison", "WeightChange", "compare", "patterns", "summary_of_weights"]
