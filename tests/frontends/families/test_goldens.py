"""Every row of the table of families against the reference implementation, on tiny checkpoints in several spellings.

One checkpoint of each model type runs always, the others with ``--slow``. What a mistake in a row or an unread key would
do is tried too: a sample always, all of it with ``python -m tests.support.families.mutations`` and ``...keys``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from frontends.checkpoint.load import load
from frontends.configuration.class_defaults import class_defaults
from frontends.families.table import FAMILIES, WRAPPERS
from ir.base.diag import LadingError
from tests.support.families.cases import CASES
from tests.support.families.checkpoints import kept
from tests.support.families.judge import judge_graph
from tests.support.families.keys import audit
from tests.support.families.mutations import Judge, Mutant, mutants
from tests.support.families.released import write_config

KNOWN = {name: case for name, case in CASES.items() if case.model_type in {*FAMILIES, *WRAPPERS}}
FIRST = {case.model_type: name for name, case in reversed(KNOWN.items()) if case.computable}
"""One case of each model type."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints and goldens are kept while the tests run."""
    return tmp_path_factory.mktemp("families")


def _slow_unless(fast: bool) -> tuple[Any, ...]:
    return () if fast else (pytest.mark.slow,)


def _each_case() -> list[Any]:
    wanted = {*FIRST.values(), *(name for name, case in KNOWN.items() if not case.computable)}
    return [pytest.param(name, marks=_slow_unless(name in wanted)) for name in KNOWN]


@pytest.mark.parametrize("name", _each_case())
def test_logits_are_those_of_the_reference(folder: Path, name: str) -> None:
    source, golden = kept(folder, name, tokenizer=False)
    assert 2 < golden.largest < 200
    verdict = judge_graph(source, golden)
    wanted = ("right",) if CASES[name].computable else ("right", "refused")
    assert verdict.status in wanted, verdict


def test_every_row_has_a_checkpoint() -> None:
    inner = {kind: wrapper.text for kind, wrapper in WRAPPERS.items()}
    tried = {case.model_type for case in CASES.values()}
    tried |= {inner[kind] for kind in tried if kind in inner}
    assert set(FAMILIES) - tried == set()


# ---- mistakes in rows ----


def _all_mutants() -> list[tuple[str, Mutant]]:
    rows = dict(FAMILIES)
    return [
        (name, mutant)
        for name, row in rows.items()
        for mutant in mutants(row, rows.values(), class_defaults(name).defaults)
    ]


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_mistakes_in_rows_are_noticed(folder: Path, every: int) -> None:
    judges: dict[str, Judge] = {}
    outcomes = []
    for name, mutant in _all_mutants()[::every]:
        if name not in judges:
            judges[name] = Judge(folder, name, FAMILIES[name])
        outcomes.append(judges[name].outcome(mutant))
    counts = Counter(outcome.status for outcome in outcomes)
    silent = [outcome for outcome in outcomes if outcome.status in ("unnoticed", "no change")]
    # Some mistakes are none: a spec that asks for another key with the same value, or a number too small to matter.
    assert counts["unnoticed"] <= 0.01 * len(outcomes) + 1 and len(silent) <= 0.1 * len(outcomes) + 2, "\n".join(
        f"{outcome.status}: {outcome.mutant}" for outcome in silent
    )


# ---- keys of the configuration ----


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FIRST.values() if CASES[name].reader != "plain"])
def test_keys_that_count_are_read_or_refused(folder: Path, name: str) -> None:
    assert [found for found in audit(name, folder) if found.offends] == []


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("llama_llama3", ("rope_scaling", "alpha"), 1000.0),
        ("qwen2", ("is_causal",), False),
        ("llama_yarn", ("rope_parameters", "truncate"), False),
        ("qwen3", ("attn_logit_softcapping",), 3.0),
        ("mistral_plain", ("layer_types",), ["sliding_attention", "full_attention"]),
    ],
)
def test_a_key_never_goes_unread_where_it_counts(folder: Path, name: str, place: tuple[str, ...], value: Any) -> None:
    """The same numbers as the reference, or a refusal."""
    from tests.support.families import keys

    source, golden = kept(folder, name, tokenizer=False)
    original = json.loads((source / "config.json").read_text())
    write_config(source, keys.with_key(original, place, value))
    try:
        reference, logits = keys.reference_of(CASES[name], source, golden)
        compiler, message = keys.compiler_of(source, golden, logits)
    finally:
        write_config(source, original)
    found = keys.Finding(name, ".".join(place), value, reference, compiler, message)
    assert not found.offends, found


def test_an_unknown_type_is_refused_by_name(folder: Path) -> None:
    source, _ = kept(folder, "qwen2", tokenizer=False)
    original = json.loads((source / "config.json").read_text())
    write_config(source, {**original, "model_type": "spark"})
    try:
        with pytest.raises(LadingError, match="'spark'") as caught:
            load(source)
    finally:
        write_config(source, original)
    assert caught.value.code == "F533"
