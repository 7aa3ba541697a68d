"""Vocabulary files give the ids that the libraries they were made for give; what they leave open is not guessed."""

from __future__ import annotations

import base64
import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frontends.text.tokenizer import load_in_process, open_tokenizer
from frontends.tokenizers import patterns
from frontends.tokenizers.files import PROGRAMS, read_tokenizer, tokenizer_file
from frontends.tokenizers.pieces import Piece, from_pieces, is_piece_model, read_pieces
from frontends.tokenizers.settings import Settings
from ir.base.diag import LadingError
from tests.support import tokenizer_data as data
from tests.support.text import vocabulary_files as files

COUNT = 2000


def _differing(texts: list[str], wanted: Any, found: Any) -> list[Any]:
    return [(text, wanted(text), found(text)) for text in texts if wanted(text) != found(text)]


def _encoder(folder: Path, special: bool = False) -> Any:
    tokenizer = load_in_process(folder)
    return lambda text: tokenizer.encode(text, add_special_tokens=special).ids


# ---- SentencePiece ----


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("llama2", 0),
        ("baichuan", 0),
        ("gemma", 0),
        ("internlm2", 0),
        ("unigram", 0.005),
        ("minicpm", 0.1),
        ("nfkc", 0.1),
    ],
)
def test_sentencepiece_gives_the_same_ids(kind: str, share: float, tmp_path: Path) -> None:
    """A share above 0 belongs to a difference that is told, or to equally likely ways to split."""
    from sentencepiece import SentencePieceProcessor

    folder = files.piece_folder(tmp_path, kind)
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    own = ("<start_of_turn>", "\n\n", "   ") if kind == "gemma" else ()
    wrong = _differing(data.sample_strings(COUNT, own), reference.encode, _encoder(folder))
    assert len(wrong) <= share * COUNT, wrong[0]
    assert bool(read_tokenizer(folder).reasons) == (kind in ("internlm2", "minicpm", "nfkc"))
    assert not share or wrong


def test_transformers_converts_a_sentencepiece_model_to_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = files.piece_folder(tmp_path, "llama2", tokenizer_class="LlamaTokenizer", legacy=False)
    reference = AutoTokenizer.from_pretrained(str(folder))
    found = _encoder(folder)
    texts = data.sample_strings(1000, ["</s>"])
    assert not _differing(texts, lambda text: reference.encode(text, add_special_tokens=False), found)


@pytest.mark.parametrize(
    ("settings", "ids"),
    [({}, (1, None)), ({"add_bos_token": False}, (None, None)), ({"add_eos_token": True}, (1, 2))],
)
def test_tokens_around_a_text(settings: dict[str, Any], ids: tuple[int | None, int | None], tmp_path: Path) -> None:
    folder = files.piece_folder(tmp_path, "llama2", **settings)
    whole, bare = _encoder(folder, True)("a"), _encoder(folder)("a")
    assert whole == [*filter(None, ids[:1]), *bare, *filter(None, ids[1:])]


def test_names_of_pieces_are_those_of_the_settings(tmp_path: Path) -> None:
    names = files.listed(3, "<|im_start|>", "<|im_end|>")
    folder = files.piece_folder(tmp_path, "internlm2", added_tokens_decoder=names)
    tokenizer = load_in_process(folder)
    assert tokenizer.encode("<|im_start|>", add_special_tokens=False).ids == [3]
    assert tokenizer.token_to_id("<|im_end|>") == 4
    assert read_tokenizer(folder).named == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_type": "char"}, "characters"),
        ({"treat_whitespace_as_suffix": True}, "spaces behind words"),
    ],
)
def test_sentencepiece_models_without_an_equal(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    text = ["the cat sat on the mat", "a dog ran to the cat"] * 20
    model = {"model_type": "unigram", **settings}
    raw = files.trained(text, vocab_size=24, hard_vocab_limit=False, **model)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(LadingError) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.code == "F587" and says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"escape": False}, "leaves spaces"),
        ({"unknown": -1}, "no unknown token"),
        ({"pieces": [Piece("a", 0.0, 5)]}, "switched off"),
    ],
)
def test_options_without_an_equal(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    model = replace(read_pieces(files.piece_model("llama2"), ""), **change)
    with pytest.raises(LadingError) as caught:
        from_pieces(model, Settings(tmp_path), "tokenizer.model")
    assert caught.value.code == "F587" and says in str(caught.value)


def test_damaged_sentencepiece_models_are_named() -> None:
    whole = files.piece_model("llama2")
    rng = random.Random(5)
    codes = set()
    for _ in range(200):
        broken = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.5 else whole)
        for _ in range(rng.randint(0, 3)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        try:
            assert read_pieces(bytes(broken), "tokenizer.model").pieces
        except LadingError as error:
            codes.add(error.code)
    assert codes == {"Q435"}
    assert is_piece_model(whole[:4096]) and not is_piece_model(b"YQ== 0\nYg== 1\n") and not is_piece_model(b"")


# ---- tables of ranks ----


@pytest.mark.parametrize(
    ("kind", "pattern", "table"),
    [
        ("kimi", patterns.KIMI, data.O200K),
        ("qwen", patterns.QWEN2, data.QWEN2),
        ("hunyuan", patterns.QWEN2, data.QWEN2),
        ("glm4", patterns.CL100K, data.LLAMA3),
        ("tekken", patterns.O200K, data.O200K),
    ],
)
def test_tiktoken_gives_the_same_ids(kind: str, pattern: str, table: str, tmp_path: Path) -> None:
    import tiktoken

    folder = files.FOLDERS[kind](tmp_path)
    ranks = files.ranks(table)
    shift = 100 if kind == "tekken" else 0
    ranks = {token: rank for token, rank in ranks.items() if not shift or rank < len(ranks) - 20}
    reference = tiktoken.Encoding(kind, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    def wanted(text: str) -> list[int]:
        composed = unicodedata.normalize("NFC", text) if kind in ("qwen", "hunyuan") else text
        return [number + shift for number in reference.encode_ordinary(composed)]

    texts = [text for text in data.sample_strings(COUNT) if "\x00" not in text]
    wrong = _differing(texts, wanted, _encoder(folder))
    assert not wrong, wrong[0]


@pytest.mark.parametrize(
    ("kind", "text", "ids"),
    [
        ("kimi", "[BOS]", [1500]),
        ("kimi", "<|reserved_token_1755|>", [1755]),
        ("qwen", "<|im_end|><|extra_204|>", [1502, 1707]),
        ("hunyuan", "<|startoftext|><|extra_0|>", [1501, 1505]),
        ("glm4", "[gMASK]<sop>", [1502, 1504]),
        ("tekken", "<s>[INST]<SPECIAL_99>", [1, 3, 99]),
    ],
)
def test_tokens_behind_a_table(kind: str, text: str, ids: list[int], tmp_path: Path) -> None:
    assert _encoder(files.FOLDERS[kind](tmp_path))(text) == ids


def test_tokens_before_a_text(tmp_path: Path) -> None:
    assert _encoder(files.FOLDERS["glm4"](tmp_path / "glm4"), True)("a")[:2] == [1502, 1504]
    assert _encoder(files.FOLDERS["tekken"](tmp_path / "tekken"), True)("a")[0] == 1


def test_special_tokens_that_a_tekken_lists(tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(files.tekken(patterns.O200K, listed=True)))
    assert _encoder(tmp_path)("[THINK]<SPECIAL_6>") == [5, 6]


def test_a_special_token_hides_a_token_of_the_table_with_its_text(tmp_path: Path) -> None:
    table = {**files.ranks(data.QWEN2), b"<s": 1500, b"<s>": 1501}
    (tmp_path / "tekken.json").write_text(
        json.dumps(
            {
                "config": {"pattern": patterns.O200K, "default_vocab_size": 1512, "default_num_special_tokens": 10},
                "vocab": [
                    {"rank": rank, "token_bytes": base64.b64encode(token).decode()} for token, rank in table.items()
                ],
            }
        )
    )
    assert _encoder(tmp_path)("<s>") == [1] and _encoder(tmp_path)("<s ") == [1510, table[b" "] + 10]


@pytest.mark.parametrize(
    "raw", [b"YQ== 0\nYg== 0\n", b"YQ== 0\n!! 1\n", b"YQ== 0\nYg==\n", b"YQ== 0\n" + b"YWFh" * 3000 + b" 1\n"]
)
def test_damaged_tables(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(raw)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}')
    with pytest.raises(LadingError) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.code == "Q435"


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"config": {}, "vocab": []},
        {"config": {"pattern": "a", "default_vocab_size": 3, "default_num_special_tokens": 1}, "vocab": [{"rank": 0}]},
        {"config": {"pattern": "a", "default_vocab_size": 3, "default_num_special_tokens": 9}, "vocab": []},
        {
            "config": {"pattern": "a", "default_vocab_size": 3, "default_num_special_tokens": 1},
            "vocab": [{"rank": 0, "token_bytes": "YQ=="}],
            "special_tokens": [{}],
        },
    ],
)
def test_damaged_tekken(content: Any, tmp_path: Path) -> None:
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with pytest.raises(LadingError) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.code == "Q435"


# ---- lists ----


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "roberta", "bert", "bert-cased"])
def test_transformers_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = files.FOLDERS[kind](tmp_path)
    reference = AutoTokenizer.from_pretrained(str(folder))
    texts = data.sample_strings(COUNT, ["<|endoftext|>", "[SEP]", "</s>"])
    wrong = _differing(texts, reference.encode, _encoder(folder, True))
    assert not wrong, wrong[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("vocab.json", "[]"), ("vocab.json", '{"a": "b"}'), ("merges.txt", "a b\nc\n"), ("merges.txt", "a b c\n")],
)
def test_damaged_lists(name: str, text: str, tmp_path: Path) -> None:
    folder = files.FOLDERS["gpt2"](tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(LadingError) as caught:
        read_tokenizer(folder)
    assert caught.value.code == "Q435" and name in str(caught.value)


# ---- which file, which program ----


def test_tokenizer_json_goes_first(tmp_path: Path) -> None:
    folder = files.piece_folder(tmp_path, "llama2")
    assert tokenizer_file(folder) == folder / "tokenizer.model"
    (folder / "tokenizer.json").write_text(data.tokenizer_text("gpt2"))
    assert tokenizer_file(folder) == folder / "tokenizer.json"
    assert open_tokenizer(folder).encode("a").ids == [
        data.json.loads(data.tokenizer_text("gpt2"))["model"]["vocab"]["a"]
    ]


@pytest.mark.parametrize(("kind", "text"), [("kimi", "深度学习 Große 12345"), ("llama2", "Hi there"), ("bert", "Hi!")])
def test_the_child_reads_them_too(kind: str, text: str, tmp_path: Path) -> None:
    folder = files.FOLDERS[kind](tmp_path)
    opened = open_tokenizer(folder)
    ids = opened.encode(text).ids
    assert ids == _encoder(folder, True)(text)
    assert opened.decode(ids, skip_special_tokens=True).lower() == text.lower()


def test_a_class_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    folder = files.rank_folder(tmp_path, "tiktoken.model", "OtherTokenizer", files.ranks(data.QWEN2))
    with pytest.raises(LadingError) as caught:
        load_in_process(folder)
    message = str(caught.value)
    assert caught.value.code == "F587"
    assert "how OtherTokenizer reads tiktoken.model is not known here, and its code is not run" in message
    assert "QWenTokenizer" in message and "BertTokenizer" not in message


def test_code_of_a_checkpoint_goes_before_the_class_that_it_names(tmp_path: Path) -> None:
    own = {"auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}, "tokenizer_class": "LlamaTokenizer"}
    with pytest.raises(LadingError) as caught:
        read_tokenizer(files.piece_folder(tmp_path, "llama2", **own))
    assert caught.value.code == "F587" and "XTokenizer" in str(caught.value)


@pytest.mark.parametrize("model", ["kimi_k2", None])
def test_a_folder_without_a_class(model: str | None, tmp_path: Path) -> None:
    folder = files.rank_folder(tmp_path, "tiktoken.model", None, files.ranks(data.QWEN2))
    (folder / "config.json").write_text(json.dumps({"model_type": model} if model else {}))
    if model:
        assert _encoder(folder)("<|reserved_token_1500|>") == [1500]
        return
    with pytest.raises(LadingError) as caught:
        read_tokenizer(folder)
    assert caught.value.code == "F587" and "nothing names the class" in str(caught.value)


def test_files_of_no_known_kind(tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tiktoken.model"):
        (tmp_path / name).write_bytes(b"\x00\x01 nothing")
        with pytest.raises(LadingError) as caught:
            read_tokenizer(tmp_path)
        assert caught.value.code == "Q435" and "neither" in str(caught.value)
        (tmp_path / name).unlink()
    with pytest.raises(LadingError) as caught:
        read_tokenizer(tmp_path)
    assert caught.value.code == "Q435"


def test_programs_are_called_without_fast() -> None:
    assert not [name for name in PROGRAMS if name.endswith("Fast")]
