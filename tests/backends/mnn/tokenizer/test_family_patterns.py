"""Words are cut on MNN as each family cuts them, capitals and scripts beyond ASCII too."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from backends.mnn.tokenizer.characters.steps import is_one_word, steps
from backends.mnn.tokenizer.forms import encode_mtok, inexact
from backends.mnn.tokenizer.merges import spell_bytes
from backends.mnn.tokenizer.spec import load_tokenizer
from frontends.tokenizers import patterns
from frontends.tokenizers.document import split
from ir.base.diag import LadingError
from tests.support import tokenizer_data as data
from tests.support import tokenizer_run as run
from tests.support.text.family_patterns import INEXACT, PATTERNS, cut_strings


@cache
def _texts() -> list[str]:
    """Strings of every kind; letters beyond U+FFFF, whose difference is declared, are left out."""
    return [text for text in [*cut_strings(1200), *data.sample_strings(700)] if max(text, default="") < "\U00010000"]


@cache
def _vocabulary() -> str:
    """Merges of what the strings are made of, learned without any cut, so that every cut shows in the ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text[:8] for text in (*cut_strings(4000, 9), *data.training_text())], trainer)
    return tokenizer.to_str()


def _folder(path: Path, cutters: Sequence[Mapping[str, Any]], words: Sequence[str] = ()) -> Path:
    content = json.loads(_vocabulary())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(cutters)}
    vocab = content["model"]["vocab"]
    for word in words:
        vocab.setdefault(spell_bytes(word.encode()), len(vocab))
    content["model"]["ignore_merges"] = bool(words)
    return data.write_folder(path, json.dumps(content))


def _wrong(folders: Mapping[str, Path], texts: Sequence[str], tmp_path: Path) -> dict[str, list[Any]]:
    """Strings that the installed MNN encodes otherwise than the library, by name."""
    release = run.installed_release()
    assert release is not None
    python = run.interpreter_of(release)
    assert python is not None
    jobs = [run.Job(encode_mtok(load_tokenizer(folder)), texts) for folder in folders.values()]
    found = {}
    for (name, folder), answer in zip(folders.items(), run.run_mnn(python, tmp_path / "run", *jobs), strict=True):
        wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(list(texts))
        rows = zip(texts, answer.ids, wanted, strict=True)
        found[name] = [(text, ids, encoding.tokens) for text, ids, encoding in rows if ids != encoding.ids]
    return found


@pytest.mark.mnn
def test_every_family_cuts_as_the_library_does(tmp_path: Path) -> None:
    folders = {name: _folder(tmp_path / str(at), row) for at, (name, row) in enumerate(PATTERNS.items())}
    wrong = _wrong(folders, _texts(), tmp_path)
    assert not {name: rows[0] for name, rows in wrong.items() if rows}


@pytest.mark.mnn
def test_what_is_not_exact_is_told(tmp_path: Path) -> None:
    folders = {name: _folder(tmp_path / str(at), row) for at, (name, (row, _)) in enumerate(INEXACT.items())}
    for name, rows in _wrong(folders, _texts(), tmp_path).items():
        assert 0 < len(rows) < 0.1 * len(_texts())
        assert any(INEXACT[name][1] in reason for reason in inexact(load_tokenizer(folders[name]), "mtok"))


@pytest.mark.mnn
def test_words_that_no_merge_reaches_are_found_whole_where_capitals_do_not_cut_them(tmp_path: Path) -> None:
    """With ignore_merges a whole word is looked up; MNN is shown such words, unless they are never whole."""
    words = (" jumpsÉ", " Étude", " ÉTUDES", " éÉa", " жизнь", " 日本A", " ÀÇ")
    folder = _folder(tmp_path / "case", PATTERNS["mistral"], words)
    texts = [f"{left}{word}{right}" for word in words for left in ("", "a", ".") for right in ("", " b", "s", ".")]
    assert not _wrong({"mistral": folder}, [*texts, *_texts()[:300]], tmp_path)["mistral"]
    assert any("where a capital follows" in reason for reason in inexact(load_tokenizer(folder), "mtok"))
    assert [is_one_word(word.strip()) for word in words] == [False, True, True, False, True, False, True]


def test_letters_beyond_the_listed_ones_are_declared(tmp_path: Path) -> None:
    for name, reason in (
        ("gpt-oss, llama4", "beyond U+FFFF count as capitals"),
        ("kimi", "Han characters beyond U+FFFF"),
    ):
        spec = load_tokenizer(_folder(tmp_path / name[:4], PATTERNS[name]))
        assert any(reason in text for text in inexact(spec, "mtok"))


@pytest.mark.parametrize(
    "pattern",
    [
        r"\p{Han}++|\s+", r"[\p{L}&&\p{Han}]+", r"[\p{L}&&[^a]]+", r"[^\p{L}&&[^\p{Han}]]+", r"[\p{Han}&&]", r"[[^\p{Han}]]",
        r"[\P{Han}]+", r"\p{Greek}+", r"a(?=b*?)", r"\b\w+", r"[\w-]+\b", r"a(?=(?:b|cd)*e)",
    ],
)  # fmt: skip
def test_patterns_without_an_equal(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(LadingError) as caught:
        encode_mtok(load_tokenizer(_folder(tmp_path, [split(pattern)])))
    assert caught.value.code == "B645"


def test_a_pattern_that_leaves_characters_over_is_cut_in_one_step() -> None:
    """What lies between matches would be cut again at its capitals."""
    assert steps(patterns.O200K) is not None
    assert steps(patterns.O200K.rpartition("|")[0].rpartition("|")[0].rpartition("|")[0]) is None
