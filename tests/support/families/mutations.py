"""Deliberate mistakes in the rows of families, and whether the goldens notice them.

``python -m tests.support.families.mutations [TYPE ...]``. A mistake is one value that a row states which is set to what the
class of the row has by default, to what another row has in the same place, or to a value near its own. It is noticed when
a checkpoint of the family is refused or computes other logits than its golden. A mistake that leaves the graphs of all
checkpoints as they are changes nothing.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from ir.base.diag import LadingError
from tests.support.families.cases import CASES
from tests.support.families.checkpoints import Golden, kept

Path_ = tuple[str, ...]
LEFT_OUT = frozenset({"types", "fixed", "unread", "like", "ignore"})
"""Fields that say what a row is for, and what it is not for: which keys and tensors play no part."""


BY_ENTRY = frozenset({"defaults", "aliases"})
"""Fields with values by key, each of which may be wrong."""


@dataclass(frozen=True)
class Mutant:
    """A row with one mistake: where it is, what stood there and what stands there now."""

    place: str
    before: Any
    after: Any
    row: Any

    def __str__(self) -> str:
        return f"{self.place}: {self.before!r} -> {self.after!r}"


@dataclass(frozen=True)
class Outcome:
    """``noticed`` by the logits, ``refused``, ``no change`` of any graph, or ``unnoticed``."""

    mutant: Mutant
    status: str
    message: str = ""


def mutants(row: Any, rows: Iterable[Any], declared: Mapping[str, Any] = MappingProxyType({})) -> Iterator[Mutant]:
    """All mistakes of one row.

    Args:
        row: the row.
        rows: all rows, from which values of other rows come, commonest first.
        declared: keys that the family's configurations have, with their defaults.
    """
    elsewhere: dict[tuple[type, str], Counter[str]] = {}
    values: dict[str, Any] = {}
    for other in rows:
        for owner, field, value, _ in _leaves(other, ()):
            elsewhere.setdefault((owner, field), Counter())[repr(value)] += 1
            values[repr(value)] = value
    for owner, field, value, path in _leaves(row, ()):
        if field in LEFT_OUT:
            continue
        default = _default_of(owner, field)
        if default and repr(default[0]) == repr(value):
            continue
        common = [values[text] for text, _ in elsewhere[owner, field].most_common() if text != repr(value)]
        tried = [*default, *common[:2], *_near(value)]
        seen = {repr(value)}
        for after in tried:
            if repr(after) in seen or _is_same(value, after, declared):
                continue
            seen.add(repr(after))
            try:
                yield Mutant(".".join(path), value, after, _with(row, path, after))
            except (TypeError, ValueError):
                continue


def _leaves(node: Any, path: Path_) -> Iterator[tuple[type, str, Any, Path_]]:
    """Owner, field, value and path of everything in a row that is not itself made of fields."""
    if dataclasses.is_dataclass(node):
        items = [(type(node), field.name, getattr(node, field.name)) for field in dataclasses.fields(node)]
    elif isinstance(node, Mapping):
        items = [(dict, str(key), value) for key, value in node.items()]
    elif isinstance(node, tuple):
        items = [(tuple, str(number), value) for number, value in enumerate(node)]
    else:
        return
    for owner, field, value in items:
        if _branches(value) or (field in BY_ENTRY and value):
            yield from _leaves(value, (*path, field))
        else:
            yield owner, field, dict(value) if isinstance(value, Mapping) else value, (*path, field)


def _branches(value: Any) -> bool:
    """A part, or a mapping or tuple that holds parts; a spec is a leaf."""
    if isinstance(value, Mapping):
        return any(_branches(item) for item in value.values())
    if isinstance(value, tuple):
        return any(_branches(item) for item in value)
    return dataclasses.is_dataclass(value) and not _is_spec(value)


def _is_spec(value: Any) -> bool:
    return type(value).__name__ in ("Product", "Quotient", "When", "Given", "Constant")


def _default_of(owner: type, field: str) -> list[Any]:
    if not dataclasses.is_dataclass(owner):
        return []
    found = next(item for item in dataclasses.fields(owner) if item.name == field)
    if found.default is not dataclasses.MISSING:
        return [found.default]
    if found.default_factory is dataclasses.MISSING:
        return []
    made = found.default_factory()
    return [dict(made) if isinstance(made, Mapping) else made]


def _is_same(before: Any, after: Any, declared: Mapping[str, Any]) -> bool:
    """True for specs that ask for the same key first, if every configuration has it; and for one that asks for keys that no
    configuration has, and gives the old value in the end."""
    first, second = (spec[0] if isinstance(spec, tuple) and spec else spec for spec in (before, after))
    if isinstance(first, str) and first == second and declared.get(first) is not None:
        return True
    if not isinstance(after, tuple) or len(after) < 2:
        return False
    return after[-1] == before and not any(isinstance(key, str) and key in declared for key in after[:-1])


def _near(value: Any) -> Iterator[Any]:
    """Values that a hurried author might have written."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float) and not 0 < value < 1e-5:
        yield value * 1.5 if value else 1.0
    elif isinstance(value, tuple) and len(value) > 1 and not _branches(value):
        yield value[1:]


def _with(node: Any, path: Path_, value: Any) -> Any:
    head, rest = path[0], path[1:]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        inner = value if not rest else _with(getattr(node, head), rest, value)
        return dataclasses.replace(node, **{head: inner})
    if isinstance(node, Mapping):
        key = next(key for key in node if str(key) == head)
        return {**node, key: value if not rest else _with(node[key], rest, value)}
    items = list(node)
    items[int(head)] = value if not rest else _with(items[int(head)], rest, value)
    return tuple(items)


# ---- judging ----


class Judge:
    """Judges mistakes in rows by the checkpoints of a model type."""

    def __init__(self, folder: Path, model_type: str, row: Any) -> None:
        """Load the checkpoints as the unchanged row reads them; those that it refuses play no part.

        Args:
            folder: where checkpoints are kept.
            model_type: whose checkpoints.
            row: the row as it should be.
        """
        self.model_type = model_type
        self.known: list[tuple[Path, Golden, str]] = []
        from frontends.families.table import WRAPPERS

        inner = {kind: wrapper.text for kind, wrapper in WRAPPERS.items()}
        for name, case in CASES.items():
            if inner.get(case.model_type, case.model_type) != model_type:
                continue
            source, golden = kept(folder, name)
            try:
                self.known.append((source, golden, _digest(self._load(source, row))))
            except LadingError:
                continue

    def _load(self, source: Path, row: Any) -> Any:
        from frontends.checkpoint.load import load

        return load(source, families={self.model_type: row})

    def outcome(self, mutant: Mutant) -> Outcome:
        """What becomes of one mistake."""
        from ir.evaluate.evaluator import evaluate

        changed = False
        for source, golden, before in self.known:
            try:
                graph = self._load(source, mutant.row)
                if _digest(graph) == before:
                    continue
                changed = True
                for ids, wanted in zip(golden.ids, golden.logits, strict=True):
                    found = evaluate(graph, {"input_ids": ids})["logits"][0]
                    if found.shape != wanted.shape or not abs(found - wanted).max() <= golden.bar:
                        return Outcome(mutant, "noticed", source.name)
            except Exception as error:
                code = error.code if isinstance(error, LadingError) else type(error).__name__
                return Outcome(mutant, "refused", f"{source.name}: {code}")
        return Outcome(mutant, "unnoticed" if changed else "no change")


def _digest(graph: Any) -> str:
    """The same for graphs that compute the same from the same tensors."""
    from ir.graph.digests import value_digests

    return " ".join(value_digests(graph, graph.outputs, lambda value: value.name).values())


@click.command()
@click.argument("patterns", nargs=-1)
@click.option("--every", default=1, help="Judge one mistake of so many.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where checkpoints are kept; they are made once.")
def main(patterns: Sequence[str], every: int, folder: Path | None) -> None:
    """Judge mistakes in the rows of some model types, or of all, and print those that nobody notices."""
    from frontends.configuration.class_defaults import class_defaults
    from frontends.families.table import FAMILIES

    rows = dict(FAMILIES)
    names = [name for name in rows if not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            judge = Judge(place, name, rows[name])
            declared = class_defaults(name).defaults
            chosen = list(mutants(rows[name], rows.values(), declared))[::every]
            outcomes = [judge.outcome(mutant) for mutant in chosen]
            counts = Counter(outcome.status for outcome in outcomes)
            total += counts
            print(f"{name}: {len(judge.known)} checkpoints, {len(outcomes)} mistakes, {dict(counts)}", flush=True)
            for outcome in outcomes:
                if outcome.status in ("unnoticed", "no change"):
                    print(f"  {outcome.status}: {outcome.mutant}")
    print(f"{sum(total.values())} mistakes: {dict(total)}")


if __name__ == "__main__":
    main()
