"""Tokens beside tokenizer.json get the ids that transformers gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backends.mnn.tokenizer.spec import load_tokenizer
from frontends.text.added_tokens import read_named_tokens
from frontends.text.tokenizer import load_in_process
from tests.support.settings.generation import EXAMPLE

ROWS = 2060
ROW = {"content": "<|eot|>", "special": True}
OWN = {str(row["id"]): row for row in json.loads((EXAMPLE / "tokenizer.json").read_text())["added_tokens"]}
OWN = {number: {key: value for key, value in row.items() if key != "id"} for number, row in OWN.items()}
"""The added tokens of tokenizer.json, as ``added_tokens_decoder`` lists them."""

FILES: dict[str, dict[str, Any]] = {
    "decoder": {"tokenizer_config": {"added_tokens_decoder": {**OWN, "2048": ROW, "2049": {"content": "<plain>"}}}},
    "decoder with gaps and other ids": {
        "tokenizer_config": {"added_tokens_decoder": {**OWN, "2055": ROW, "2050": {"content": "<a>", "lstrip": True}}}
    },
    "decoder, so the map does not count": {
        "tokenizer_config": {"added_tokens_decoder": {**OWN, "2048": ROW}},
        "added_tokens": {"<legacy>": 2049},
    },
    "legacy files": {
        "added_tokens": {"<b>": 2049, "<|eot|>": 2048},
        "special_tokens_map": {"eos_token": "<|eot|>", "pad_token": {"content": "<pad>", "lstrip": False}},
    },
    "named and extra tokens": {
        "tokenizer_config": {
            "eos_token": "<|eot|>",
            "image_token": "<img>",
            "additional_special_tokens": ["<x>", "<y>"],
        }
    },
    "a word of the vocabulary": {"tokenizer_config": {"eos_token": "import"}},
    "a token of tokenizer.json": {
        "tokenizer_config": {"added_tokens_decoder": {**OWN, "7": {"content": "<|im_end|>"}}}
    },
}


def folder_with(base: Path, **files: dict[str, Any]) -> Path:
    """The example's tokenizer with more rows and these files merged in."""
    for path in EXAMPLE.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, base)
    for name, change in {"config": {"vocab_size": ROWS}, **files}.items():
        path = base / f"{name}.json"
        data = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**data, **change}))
    return base


TEXT = "import os <|eot|> <a>  <b><plain> x<x> <|im_end|> <img><pad> <legacy>"


@pytest.mark.parametrize("name", FILES)
def test_ids_and_texts_are_those_of_transformers(tmp_path, name):
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, **FILES[name])
    theirs = AutoTokenizer.from_pretrained(folder)
    spec, ours = load_tokenizer(folder), load_in_process(folder)
    wanted = {token.content: number for number, token in theirs.added_tokens_decoder.items()}
    assert {token.content: token.id for token in spec.added} == wanted
    assert {token.content: number for number, token in ours.get_added_tokens_decoder().items()} == wanted
    flags = {
        number: (item.special, item.lstrip, item.normalized) for number, item in theirs.added_tokens_decoder.items()
    }
    assert {token.id: (token.special, token.lstrip, token.normalized) for token in spec.added} == flags
    assert ours.encode(TEXT).ids == theirs(TEXT)["input_ids"]
    assert (theirs.eos_token_id in spec.stop_ids) == (theirs.eos_token is not None)


def test_tokens_without_a_row_are_not_taken(tmp_path):
    folder = folder_with(tmp_path, **FILES["decoder"], config={"vocab_size": 2049})
    added = [token.content for token in load_tokenizer(folder).added]
    assert "<|eot|>" in added and "<plain>" not in added
    assert (
        load_in_process(folder).token_to_id("<|eot|>") == 2048
        and load_in_process(folder).token_to_id("<plain>") is None
    )


def test_what_is_no_token_is_passed_over(tmp_path):
    odd = {"added_tokens_decoder": {"x": {"content": "<k>"}, "3": "<str>", "4": {}, "5": {"content": ""}}}
    folder = folder_with(tmp_path, tokenizer_config={**odd, "odd_token": 3, "add_bos_token": True})
    (tmp_path / "added_tokens.json").write_text('{"<i>": Infinity, "": 3}')
    assert [item.content for item in read_named_tokens(folder)] == ["<k>", "<|im_end|>", "<|endoftext|>"]


def test_an_id_that_no_number_is_leaves_the_token(tmp_path):
    folder = folder_with(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<i>": Infinity, "<j>": "x", "": 3}')
    assert [item.content for item in read_named_tokens(folder)][:2] == ["<i>", "<j>"]
    assert [token.id for token in load_tokenizer(folder).added[-2:]] == [2048, 2049]


def test_a_tokenizer_is_read_again_when_a_file_beside_it_changes(tmp_path):
    """In one process, as the child that serves several requests is."""
    folder = tmp_path / "model"
    shutil.copytree(EXAMPLE, folder)
    assert load_in_process(folder).token_to_id("<later>") is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 8}))
    (folder / "added_tokens.json").write_text(json.dumps({"<later>": config["vocab_size"]}))
    assert load_in_process(folder).token_to_id("<later>") is not None
