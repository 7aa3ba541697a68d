"""Tokenizer files of MNN: equal ids and text on the runtime, honest reasons where they differ, errors with codes.

The reference is the tokenizers library. MNN runs in a child process: the installed release always, the others where
`python -m tools.releases` has made an environment for them.
"""

from __future__ import annotations

import functools
import json
import random
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from backends.mnn.tokenizer.characters.normal_forms import compose_rules
from backends.mnn.tokenizer.characters.translate import translate
from backends.mnn.tokenizer.files.mtok import byte_order
from backends.mnn.tokenizer.files.read import MtokFile, TextFile, read_mtok, read_text, read_tokenizer
from backends.mnn.tokenizer.forms import encode_mtok, encode_text, inexact, jinja_template, text_tokenizer
from backends.mnn.tokenizer.merges import spell_bytes, unreachable_tokens
from backends.mnn.tokenizer.spec import TokenizerSpec, load_tokenizer
from backends.mnn.tokenizer.write_files import warnings
from ir.base.diag import LadingError
from tests.support import tokenizer_data as data
from tests.support import tokenizer_run as run

COUNT, FEWER = 5000, 1500
# Kinds whose ids are equal on every string but those with declared characters.
EXACT = (
    "example", "gpt2", "qwen2", "llama3", "deepseek", "sp-legacy", "sp-metaspace", "sp-metaspace-split", "sp-gemma",
    "added", "blanks",
)  # fmt: skip
# Kind -> the largest share of sample strings that may differ, and a part of the declared reason.
NEARLY = {
    "llama3-ranks": (0.01, "no merge reaches"),
    "o200k": (0.002, "beyond U+FFFF"),
    "sp-first": (0.15, "leading space"),
    "unigram": (0.02, "equally likely"),
    "unigram-bytes": (0.02, "equally likely"),
    "wordpiece": (0.10, "spacing marks"),
}
# Type of the text form of each kind.
TEXT_TYPES = {
    "example": 3, "gpt2": 3, "qwen2": 3, "llama3": 3, "sp-legacy": 0, "sp-gemma": 1, "unigram": 0, "wordpiece": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: kind of tokenizer -> folder with its files."""
    root = tmp_path_factory.mktemp("tokenizers")
    return functools.cache(lambda kind: data.write_folder(root / kind, data.tokenizer_text(kind)))


@pytest.fixture(scope="module")
def specs(folders: Any) -> Any:
    """A function: kind of tokenizer -> its spec."""
    return functools.cache(lambda kind: load_tokenizer(folders(kind)))


@pytest.fixture(scope="module")
def samples(specs: Any) -> Any:
    """A function: kind -> strings that hold its added tokens too, but for those whose difference is declared."""

    def make(kind: str) -> list[str]:
        plain = [token for token in specs(kind).added if not (token.single_word or token.lstrip or token.rstrip)]
        return data.sample_strings(COUNT if kind in EXACT else FEWER, [token.content for token in plain])

    return functools.cache(make)


@pytest.fixture(scope="module")
def references(folders: Any, samples: Any) -> Any:
    """A function: kind -> ids by the tokenizers library, and their decoding with and without special tokens."""

    def make(kind: str) -> tuple[list[list[int]], list[str]]:
        tokenizer = Tokenizer.from_file(str(folders(kind) / "tokenizer.json"))
        ids = [encoding.ids for encoding in tokenizer.encode_batch(samples(kind))]
        return ids, tokenizer.decode_batch(ids, skip_special_tokens=False)

    return functools.cache(make)


@pytest.fixture(scope="module")
def answers(specs: Any, samples: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: release and form -> kind -> what that MNN answers; skips where the release is not at hand."""

    def make(release: str, form: str) -> dict[str, run.Answer]:
        python = _interpreter(release)
        kinds = (*EXACT, *NEARLY) if form == "mtok" else tuple(TEXT_TYPES)
        files = [encode_mtok(specs(kind)) if form == "mtok" else encode_text(specs(kind))[1] for kind in kinds]
        jobs = [run.Job(file, samples(kind)) for kind, file in zip(kinds, files, strict=True)]
        found = run.run_mnn(python, tmp_path_factory.mktemp(form), *jobs)
        return dict(zip(kinds, found, strict=True))

    return functools.cache(make)


def _interpreter(release: str) -> str:
    python = run.interpreter_of(release)
    if python is None:
        pytest.skip(f"no environment of MNN {release}: make one with python -m tools.releases, or set LADING_MNN_ENVS")
    return python


def _differing(left: list[Any], right: list[Any]) -> list[int]:
    return [index for index, pair in enumerate(zip(left, right, strict=True)) if pair[0] != pair[1]]


# -- the runtime ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("release", [name for name in run.RELEASES if name >= "3.5"])
def test_binary_form_gives_the_same_ids_and_text(
    release: str, kind: str, answers: Any, samples: Any, references: Any
) -> None:
    answer = answers(release, "mtok")[kind]
    ids, texts = references(kind)
    assert len(ids) >= COUNT
    wrong = _differing(answer.ids, ids)
    assert not wrong, (samples(kind)[wrong[0]], answer.ids[wrong[0]], ids[wrong[0]])
    decoded = [text.decode(errors="replace") for text in answer.decoded]
    wrong = _differing(decoded, texts)
    assert not wrong, (samples(kind)[wrong[0]], decoded[wrong[0]], texts[wrong[0]])


@pytest.mark.parametrize("kind", NEARLY)
@pytest.mark.parametrize("release", [name for name in run.RELEASES if name >= "3.5"])
def test_declared_differences_are_rare(release: str, kind: str, answers: Any, specs: Any, references: Any) -> None:
    share, reason = NEARLY[kind]
    assert any(reason in text for text in inexact(specs(kind), "mtok"))
    wrong = _differing(answers(release, "mtok")[kind].ids, references(kind)[0])
    assert len(wrong) <= share * FEWER


@pytest.mark.parametrize("kind", TEXT_TYPES)
@pytest.mark.parametrize("release", run.RELEASES)
def test_python_emulation_agrees_with_the_runtime_on_text_forms(
    release: str, kind: str, answers: Any, specs: Any, samples: Any
) -> None:
    answer = answers(release, "text")[kind]
    emulated = text_tokenizer(specs(kind))
    wrong = _differing(answer.ids, [emulated.encode(text) for text in samples(kind)])
    assert not wrong, (samples(kind)[wrong[0]], answer.ids[wrong[0]])
    decoded = [b"".join(map(emulated.decode, ids)) for ids in answer.ids]
    wrong = _differing(answer.decoded, decoded)
    assert not wrong, (samples(kind)[wrong[0]], answer.decoded[wrong[0]], decoded[wrong[0]])


def test_text_form_of_a_legacy_sentencepiece_tokenizer_is_exact(specs: Any, samples: Any, references: Any) -> None:
    emulated = text_tokenizer(specs("sp-legacy"))
    assert [emulated.encode(text) for text in samples("sp-legacy")] == references("sp-legacy")[0]


@pytest.mark.parametrize("kind", TEXT_TYPES)
def test_text_form_has_the_nearest_type_and_says_what_differs(kind: str, specs: Any, samples: Any) -> None:
    found, file = encode_text(specs(kind))
    assert found == TEXT_TYPES[kind] == read_text(file).header.type
    assert inexact(specs(kind), "text") or kind == "sp-legacy"


def test_number_tokens_bring_the_text_form_nearer(specs: Any, folders: Any) -> None:
    reference = Tokenizer.from_file(str(folders("gpt2") / "tokenizer.json"))
    spec = specs("gpt2")
    numbers = [f"n = {number}" for number in range(1000)]
    emulated = text_tokenizer(spec)
    equal = sum(emulated.encode(text) == reference.encode(text).ids for text in numbers)
    assert equal > 500
    file = read_text(encode_text(spec)[1])
    taken = [file.tokens[index].decode() for index in file.header.special_ids]
    assert any(text.lstrip("\u0120").isdigit() and len(text) > 1 for text in taken)


def test_added_tokens_take_blanks_along(folders: Any, specs: Any, tmp_path: Path) -> None:
    gaps = ("", " ", "  ", "\n", "\t \r\n", "x", ".", "é")
    tokens = ("<left>", "<right>", "<both>", "<norm>", "<a><b><c", "<｜x▁y｜>")
    texts = [f"a{left}{token}{right}b" for token in tokens for left in gaps for right in gaps]
    reference = Tokenizer.from_file(str(folders("added") / "tokenizer.json"))
    release = run.installed_release()
    assert release is not None
    (answer,) = run.run_mnn(_interpreter(release), tmp_path, run.Job(encode_mtok(specs("added")), texts))
    wanted = [encoding.ids for encoding in reference.encode_batch(texts)]
    wrong = _differing(answer.ids, wanted)
    assert not wrong, (texts[wrong[0]], answer.ids[wrong[0]], wanted[wrong[0]])


def test_stages_put_together_from_others_give_the_same_ids(tmp_path: Path) -> None:
    texts = [*data.sample_strings(600), *(f"a{key}b {key}" for key in data.CHARSMAP), "  x\t\ty  ", "a.b-c--d"]
    jobs, wanted = [], []
    for number, name in enumerate(data.STAGES):
        folder = data.write_folder(tmp_path / f"stage{number}", data.stage_text(name))
        jobs.append(run.Job(encode_mtok(load_tokenizer(folder)), texts))
        wanted.append([e.ids for e in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)])
    release = run.installed_release()
    assert release is not None
    for name, answer, ids in zip(data.STAGES, run.run_mnn(_interpreter(release), tmp_path, *jobs), wanted, strict=True):
        wrong = _differing(answer.ids, ids)
        assert not wrong, (name, texts[wrong[0]], answer.ids[wrong[0]], ids[wrong[0]])


@pytest.mark.parametrize("release", run.RELEASES)
def test_chat_template_renders_the_same_on_every_release(release: str, tmp_path: Path) -> None:
    python = _interpreter(release)
    template = "\n{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    texts = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wanted = []
    jobs = []
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    for number, body in enumerate((template, template.strip(), "{{ unk_token }}" + template.strip())):
        folder = data.write_folder(tmp_path / str(number), data.tokenizer_text("sp-legacy"), body, **texts)
        spec = load_tokenizer(folder)
        file = encode_text(spec)[1] if release < "3.5" else encode_mtok(spec)
        jobs.append(run.Job(file, (), [chat], {"chat_template": jinja_template(spec), "eos": spec.eos}))
        rendered = "<s>[user]Hi</s>[assistant]Yo</s>"
        wanted.append(["\n" + rendered, rendered, "<unk>" + rendered][number])
    found = run.run_mnn(python, tmp_path / "run", *jobs)
    assert [answer.prompts[0] for answer in found] == wanted


def test_declared_characters_are_declared(specs: Any) -> None:
    reasons = " ".join(inexact(specs("qwen2"), "mtok"))
    for text in ("U+0085", "U+2028", "U+2029", "U+0001 to U+0007", "U+017F"):
        assert text in reasons
    assert inexact(specs("sp-legacy"), "mtok") == []


# -- words found whole ------------------------------------------------------------------------------------------------


def test_words_that_no_merge_reaches_are_found_whole(folders: Any, specs: Any, tmp_path: Path) -> None:
    spec = specs("llama3-ranks")
    assert set(unreachable_tokens(spec)) == {spell_bytes(word.encode()) for word in data.UNREACHED}
    words = [word for word in data.UNREACHED if word[0] == " "]
    ends = ("", " ", ".", "\n", " jumpsover", "s", "ы", "ệ", "気", "2", "\u0301", "'s", "<|eot_id|>")
    texts = [
        f"{left}{word}{right}" for word in words for left in ("a", "", " ", "\n", "\t", "x.", "字") for right in ends
    ]
    reference = Tokenizer.from_file(str(folders("llama3-ranks") / "tokenizer.json"))
    release = run.installed_release()
    assert release is not None
    (answer,) = run.run_mnn(_interpreter(release), tmp_path, run.Job(encode_mtok(spec), texts))
    wanted = [encoding.ids for encoding in reference.encode_batch(texts)]
    assert all(any(spec.vocab[spell_bytes(word.encode())] in ids for ids in wanted) for word in words)
    wrong = _differing(answer.ids, wanted)
    assert not wrong, (texts[wrong[0]], answer.ids[wrong[0]], wanted[wrong[0]])
    file = read_mtok(encode_mtok(spec))
    spelled = [spell_bytes(word.encode()) for word in data.UNREACHED]
    assert [file.tokens[spec.vocab[text]].decode() for text in spelled] == spelled


# -- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [data.GPT2, r"\s?\p{L}+", r"\p{N}{1,3}", "[一-龥ࠀ-一]+"])
def test_faithful_patterns_are_kept(pattern: str) -> None:
    text = translate(pattern)[0]
    assert sorted(text.replace("[^", "[")) == sorted(pattern.replace("[^", "["))


@pytest.mark.parametrize(
    ("pattern", "printed"),
    [
        ("(?i:'s|'t)", "'[Ss]|'[Tt]"),
        (r"\p{L}++[\r\n]*", r"\p{L}+[\n\r]*"),
        (r"[^\r\n\p{L}\p{N}]?+\p{L}+", r"[^\n\r\p{L}\p{N}]?\p{L}+"),
        ("(?:foo|fo)o", "fooo|foo"),
        ("a(?:b|c)?d+", "abd+|acd+|ad+"),
        (r"[\p{Lu}\p{Lo}]", r"[\x01A-Z]"),
        (r"\d{2,}", r"\p{N}{2,}"),
        ("[a-c-]", r"[\-a-c]"),
        (r"\x41|\u0042", "A|B"),
        (r"[[ab]c]|\.", r"[a-c]|\."),
        (r"[^\S]", r"\s"),
        ("x(?!y|z)", "x(?!y|z)"),
        (r"\s+$", r"\s+(?![^\n])"),
        ("a+(?=b)", "a+(?!(?!b))"),
        (r"[0-9]+\b", r"[0-9]+(?![_\p{L}\p{N}\p{M}])"),
    ],
)
def test_patterns_are_printed_for_the_runtimes_matcher(pattern: str, printed: str) -> None:
    assert translate(pattern)[0] == printed


@pytest.mark.parametrize(
    "pattern",
    [
        "a*?b", "^a", "(?<=a)b", "a*", r"\bfoo", "(?:ab|a){2}c", "[[:alpha:]]", "[a&&b]", "(ab", "ab)",
        "[a", r"\p{Han}+", "a++a", "+a", "a{2", "a{3,2}", "(?:a|b)++", "(?>ab)", "(?x: a)", "a(?!b)*", r"[\P{L}b-a]",
        "(?i:é)", r"[一-龥\p{L}]+", "a|", "(?!(?:a|b))c", "a+(?:b|c)d", r"\xZZ", "a{2}+", r"[^一]++",
        r"[\ud800]", r"\x{DFFF}", r"a-\x{110000}", r"\x{-1}", r"[\x{}]",
    ],
)  # fmt: skip
def test_patterns_without_an_equal_are_refused(pattern: str) -> None:
    with pytest.raises(LadingError) as caught:
        translate(pattern)
    assert caught.value.code == "B645"


# -- normalization ----------------------------------------------------------------------------------------------------


def _apply(form: str, text: str) -> str:
    result = text.encode()
    for source, target in compose_rules(form):
        result = result.replace(source, target)
    return result.decode()


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
def test_replacements_normalize_every_character(form: str) -> None:
    codes = [*range(0x80, 0x3400), *range(0xA640, 0xAC00, 7), *range(0xAC00, 0xD7A4, 97), *range(0xF900, 0xFFFE, 5)]
    codes += [*range(0x11000, 0x11A00, 3), *range(0x1D100, 0x1D1FF), *range(0x2F800, 0x2FA1E, 9)]
    text = "".join(unicodedata.normalize("NFD", chr(code)) + "\n" for code in codes)
    assert _apply(form, text) == unicodedata.normalize(form, text)


@settings(max_examples=60, deadline=None)
@given(
    letter=st.sampled_from("aeiouyszAEOUαωηиЖ한ậẹêǖ") | st.integers(0x1E00, 0x1FFF).map(chr),
    marks=st.lists(st.sampled_from(data.MARKS), max_size=2),
)
def test_replacements_compose_and_sort_marks(letter: str, marks: list[str]) -> None:
    text = f"x{letter}{''.join(marks)}y"
    assert _apply("NFC", text) == unicodedata.normalize("NFC", text)


# -- reading a checkpoint ---------------------------------------------------------------------------------------------


def _folder(tmp_path: Path, change: Any = None, **files: Any) -> Path:
    """A small byte-level checkpoint; `change` edits tokenizer.json, `files` are further JSON files."""
    content = json.loads(data.tokenizer_text("gpt2"))
    if change is not None:
        change(content)
    folder = data.write_folder(tmp_path / "checkpoint", json.dumps(content))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_stop_ids_come_from_all_files_once(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path,
        generation_config={"eos_token_id": [7, 3, 7]},
        tokenizer_config={"eos_token": {"content": "<|endoftext|>"}},
        config={"eos_token_id": 3, "text_config": {"eos_token_id": 9}, "vocab_size": 1600},
    )
    spec = load_tokenizer(folder)
    assert spec.stop_ids == (7, 3, 1500, 9)
    assert spec.eos == "<|endoftext|>" and spec.bos is None
    assert spec.table_size == 1600 == len(read_mtok(encode_mtok(spec)).tokens)
    assert read_text(encode_text(spec)[1]).header.stop_ids == spec.stop_ids


def test_no_stop_id_is_a_warning(tmp_path: Path) -> None:
    assert [item.code for item in warnings(load_tokenizer(_folder(tmp_path)))] == ["B762"]


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        (None, (1,)),
        ("{{ bos_token }}{{ messages[0].content }}", ()),
        ("{{ '<s>' + messages[0].content }}", ()),
        ("[{{ messages[0].content }}]", (1,)),
    ],
)
def test_bos_is_prepended_once(template: str | None, prefix: tuple[int, ...], tmp_path: Path) -> None:
    folder = data.write_folder(tmp_path, data.tokenizer_text("sp-legacy"), template, bos_token="<s>", eos_token="</s>")
    spec = load_tokenizer(folder)
    assert spec.prefix_ids == (1,) and spec.encode_prefix_ids == prefix
    assert read_mtok(encode_mtok(spec)).header.prefix_ids == prefix
    assert any("raw text" in reason for reason in inexact(spec, "mtok")) == (prefix == ())


def test_chat_template_files_go_before_settings(tmp_path: Path) -> None:
    listed = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    folder = _folder(tmp_path, tokenizer_config={"chat_template": listed})
    assert load_tokenizer(folder).chat_template == "D"
    assert load_tokenizer(folder, template="tool_use").chat_template == "T"
    (folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert load_tokenizer(folder).chat_template == "J"
    (folder / "chat_template.jinja").write_text("F")
    assert load_tokenizer(folder).chat_template == "F"


def test_chat_template_sets_the_special_tokens_it_names(tmp_path: Path) -> None:
    texts = {"bos_token": '<"s">', "eos_token": "</s>", "pad_token": "<pad>"}
    folder = data.write_folder(tmp_path, data.tokenizer_text("gpt2"), "{{ bos_token }}{{ eos_token }}", **texts)
    assert jinja_template(load_tokenizer(folder)) == '{%- set bos_token = "<\\"s\\">" -%}{{ bos_token }}{{ eos_token }}'
    assert jinja_template(load_tokenizer(_folder(tmp_path))) is None


def test_added_tokens_beyond_the_embedding_are_left_out_with_a_note(tmp_path: Path) -> None:
    spec = load_tokenizer(_folder(tmp_path, config={"vocab_size": 1500}))
    assert spec.added == () and any("left out" in note for note in spec.notes)


def test_ids_of_added_tokens_are_those_the_library_gives(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["added_tokens"] = [data.added("<x>", 1700), data.added("<y>", 12), data.added("a", 5)]

    folder = _folder(tmp_path, change)
    spec = load_tokenizer(folder)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert {token.content: token.id for token in spec.added} == {
        text: reference.token_to_id(text) for text in ("<x>", "<y>", "a")
    }
    assert len(spec.notes) >= 3


def test_merges_may_be_text_or_pairs_and_the_later_of_two_holds(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        merges = content["model"]["merges"]
        content["model"]["merges"] = [" ".join(pair) for pair in [merges[5], *merges[:5], *merges[6:], merges[2]]]

    spec = load_tokenizer(_folder(tmp_path, change))
    plain = load_tokenizer(data.write_folder(tmp_path / "plain", data.tokenizer_text("gpt2")))
    order = plain.merges.tolist()
    assert spec.merges.tolist() == [order[5], *order[:2], *order[3:5], *order[6:], order[2]]


def test_merges_may_hold_line_breaks(tmp_path: Path) -> None:
    """As those of Gemma do, whose runs of line breaks are tokens."""

    def with_breaks(content: dict[str, Any]) -> None:
        model = content["model"]
        for text in ("\n", "\n\n"):
            model["vocab"].setdefault(text, max(model["vocab"].values()) + 1)
        model["merges"] = [" ".join(pair) for pair in [*model["merges"], ("\n", "\n")]]

    spec = load_tokenizer(_folder(tmp_path, with_breaks))
    one, two = spec.vocab["\n"], spec.vocab["\n\n"]
    assert spec.merges[-1].tolist() == [one, one, two]


@given(st.lists(st.binary(max_size=3) | st.binary(min_size=6, max_size=10).map(lambda tail: b"abcd" + tail)))
def test_byte_order_is_that_of_sorting(texts: list[bytes]) -> None:
    assert byte_order(texts).tolist() == sorted(range(len(texts)), key=texts.__getitem__)


def _replace(key: str, value: Any, *more: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        part = content
        for name in (key, *more)[:-1]:
            part = part[name]
        part[(key, *more)[-1]] = value

    return change


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("B642", _replace("model", {"type": "WordLevel", "vocab": {"a": 0}})),
        ("B642", _replace("model", 0.1, "dropout")),
        ("B642", _replace("model", "</w>", "end_of_word_suffix")),
        ("B643", _replace("normalizer", {"type": "Nmt"})),
        ("B643", _replace("normalizer", {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"})),
        ("B643", _replace("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("B644", _replace("pre_tokenizer", {"type": "UnicodeScripts"})),
        ("B644", _replace("pre_tokenizer", data.STAGES["contiguous"][1] | {"type": "FixedLength"})),
        ("B641", _replace("normalizer", "NFC")),
        ("B641", _replace("normalizer", {"type": "Sequence", "normalizers": {"type": "NFC"}})),
        ("B641", _replace("normalizer", {"type": "Prepend"})),
        ("B641", _replace("normalizer", {"type": "Replace", "pattern": "a"})),
        ("B641", _replace("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": None})),
        ("B641", _replace("decoder", {"type": "Replace", "pattern": {"String": "a"}, "content": None})),
        ("B641", _replace("pre_tokenizer", {"type": "Metaspace", "replacement": None})),
        ("B641", _replace("pre_tokenizer", {"type": "Split"})),
        ("B641", _replace("pre_tokenizer", {"type": "Sequence", "pretokenizers": [None, 3]})),
        ("B641", _replace("decoder", {"type": "Strip", "start": 1})),
        ("B644", _replace("pre_tokenizer", {"type": "Split", "pattern": {"String": "ab"}, "behavior": "Contiguous"})),
        ("B645", _replace("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "a*?b"}})),
        ("B646", _replace("decoder", {"type": "CTC"})),
        ("B647", _replace("added_tokens", [data.added("word", single_word=True)])),
        ("B647", _replace("added_tokens", [{"id": 3}])),
        ("B647", _replace("added_tokens", "x")),
        ("B647", _replace("model", 1500, "vocab", "Ā")),
        ("B648", _replace("post_processor", {"type": "Other"})),
        ("B648", _replace("post_processor", data.bos_processor("<s>", 99999))),
        ("B648", _replace("post_processor", {"type": "TemplateProcessing", "single": ["$A"]})),
        ("B648", _replace("post_processor", {**data.bos_processor("<s>", 1), "special_tokens": {}})),
        ("B648", _replace("post_processor", {"type": "BertProcessing", "cls": ["[CLS]"], "sep": ["[SEP]", 2]})),
        ("B649", _replace("model", [["a", "zzzz"]], "merges")),
        ("B649", _replace("model", ["a b c"], "merges")),
        ("B649", _replace("model", {"a": 0, "b": 0}, "vocab")),
        ("B649", _replace("model", {"a": 0, "b" * 70000: 1}, "vocab")),
        ("B641", _replace("model", None)),
        ("B641", _replace("model", {}, "vocab")),
        ("B641", _replace("model", None, "merges")),
        ("B641", _replace("model", {"type": "Unigram", "vocab": [["a"]]})),
        ("B642", _replace("model", {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": None})),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_an_error_with_a_code(code: str, change: Any, tmp_path: Path) -> None:
    def with_merges(content: dict[str, Any]) -> None:
        change(content)
        if isinstance(content["model"], dict) and len(content["model"].get("vocab") or "") == 2:
            content["model"]["merges"] = []

    folder = _folder(tmp_path, with_merges)
    with pytest.raises(LadingError) as caught:
        encode_mtok(load_tokenizer(folder))
    assert caught.value.code == code
    assert str(folder) in str(caught.value) or code in ("B645", "B649")


@pytest.mark.parametrize(
    ("code", "files"),
    [
        ("B641", {"config": [1]}),
        ("B641", {"config": {"vocab_size": "many"}}),
        ("B641", {"tokenizer_config": {"bos_token": 3}}),
        ("B650", {"tokenizer_config": {"chat_template": [{"name": "other", "template": "x"}]}}),
        ("B650", {"tokenizer_config": {"chat_template": 5}}),
        ("B652", {"generation_config": {"eos_token_id": "2"}}),
        ("B652", {"generation_config": {"eos_token_id": [0, -1]}}),
        ("B653", {"config": {"vocab_size": 1000}}),
    ],
)
def test_malformed_side_files_are_errors(code: str, files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LadingError) as caught:
        load_tokenizer(_folder(tmp_path, **files))
    assert caught.value.code == code


def test_missing_or_broken_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(LadingError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "B640"
    assert "only vocab.json" in str(caught.value) and "--tokenizer" in str(caught.value)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(LadingError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "Q435"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LadingError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.code == "B641"


def test_text_form_needs_all_bytes(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        kept = [text for text in vocab if "Ā" not in text]
        content["model"]["vocab"] = {text: index for index, text in enumerate(kept)}

    spec = load_tokenizer(_folder(tmp_path, change))
    with pytest.raises(LadingError) as caught:
        encode_text(spec)
    assert caught.value.code == "B651"


# -- the reader -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*EXACT, *NEARLY])
def test_reader_finds_what_was_written(kind: str, specs: Any) -> None:
    spec: TokenizerSpec = specs(kind)
    file = read_tokenizer(encode_mtok(spec))
    assert isinstance(file, MtokFile) and file.model == spec.kind
    own = {token.id for token in spec.added}
    assert all(file.tokens[index] == text.encode() for text, index in spec.vocab.items() if index not in own)
    assert [row[:2] for row in file.added] == [(token.id, token.content) for token in spec.added]
    ranked = sorted(file.merges, key=lambda merge: merge[2])[: len(spec.merges)]
    assert [list(merge[:2]) for merge in ranked] == spec.merges[:, :2].tolist()
    text = read_tokenizer(encode_text(spec)[1])
    assert isinstance(text, TextFile)
    assert set(file.header.special_ids) <= own and text.header.stop_ids == file.header.stop_ids


def test_reader_reports_every_kind_of_damage(specs: Any) -> None:
    rng = random.Random(11)
    files = (encode_mtok(specs("llama3-ranks")), encode_text(specs("gpt2"))[1], encode_text(specs("sp-legacy"))[1])
    for whole in files:
        codes = set()
        for _ in range(150):
            broken = bytearray(whole)
            if rng.random() < 0.5:
                del broken[rng.randrange(len(broken)) :]
            else:
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            try:
                read_tokenizer(bytes(broken))
            except LadingError as error:
                codes.add(error.code)
        assert codes <= {"B655", "B656", "B657"} and "B656" in codes


@pytest.mark.parametrize(
    ("code", "file"),
    [
        ("B655", b""), ("B655", b"431 3\n0 0 0\n\n"), ("B655", b"430 9\n0 0 0\n\n"), ("B655", b"430 3\n1 0 0\n\n"),
        ("B655", b"430 3\nx\n\n"), ("B656", b"430 1\n0 0 0\n\n2\nYQ==\n"), ("B656", b"430 1\n0 0 0\n\n1\nYQ=\n"),
        ("B657", b"430 1\n1 0 0\n7\n1\nYQ==\n"), ("B657", b"430 1\n0 0 0\n\n1\n\n"),
        ("B656", b"430 0\n0 0 0\n\n1\nYQ== 1\n"), ("B657", b"430 0\n0 0 0\n\n1\nYQ== 1 9\n"),
        ("B656", b"430 3\n0 0 0\n\n1 1\na\nb\n"), ("B657", b"430 3\n0 0 0\n\n1 1\na\na a\n"),
        ("B656", b"430 4\n0 0 0\n\n\x09"), ("B657", b"430 4\n0 0 0\n\n\x04\x01\0\0\0\0"),
        ("B657", b"430 4\n0 0 0\n\n\x03\0\0\0\0"),
    ],
)  # fmt: skip
def test_reader_checks_the_rules(code: str, file: bytes) -> None:
    with pytest.raises(LadingError) as caught:
        read_tokenizer(file)
    assert caught.value.code == code


# -- size -------------------------------------------------------------------------------------------------------------


def test_a_large_vocabulary_is_written_in_well_under_a_second(tmp_path: Path) -> None:
    folder = data.write_folder(tmp_path, json.dumps(data.random_vocabulary(151643)))
    spec = load_tokenizer(folder)
    for write in (encode_mtok, encode_text):
        start = time.process_time()
        write(spec)
        assert time.process_time() - start < 1.0
