"""Which ids end generation, and what people are told of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.mnn.tokenizer.ends import TEMPLATE, turn_ends
from backends.mnn.tokenizer.spec import TokenizerSpec, load_tokenizer
from backends.mnn.tokenizer.write_files import warnings
from tests.support.settings.generation import edited

SPECIAL = (
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<|end_header_id|>",
    "<end_of_turn>",
    "</s>",
    "<|end|>",
    "[/INST]",
)


def load(base: Path, template: str | None = None, **files: Any) -> TokenizerSpec:
    folder = edited(base / "model", **files)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return load_tokenizer(folder)


def told(spec: TokenizerSpec) -> list[tuple[str, str]]:
    return [(item.code, item.message) for item in warnings(spec)]


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}", ["<|im_end|>"]),
        ("{{- '<|im_start|>' + m['role'] }}{{- m['content'] | trim + '<|eot_id|>' }}", ["<|eot_id|>"]),
        ("<|im_start|>{{ m.role }}<|end_header_id|>{{ m.content }}<end_of_turn>\n", ["<end_of_turn>"]),
        ("{{ m.content.strip() ~ '</s>' }}", ["</s>"]),
        ("{{ m['content'] }}{{ '<|end|>' }}", ["<|end|>"]),
        ("{% if a %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ content + '</s>' }}{% endif %}",
         ["[/INST]", "</s>"]),
        ("{{ m.content }}", []),
        ("{{ '<|im_start|>' + m.role }}", []),
        ("{{ content.split('</s>')[0] }}", []),
        ("", []),
    ],
)  # fmt: skip
def test_what_a_template_ends_turns_with(template, wanted):
    assert turn_ends(template, SPECIAL) == wanted


def test_the_file_of_onnxruntime_genai_counts_too(tmp_path):
    folder = edited(tmp_path / "model")
    before = load_tokenizer(folder).end_sources
    other = next(token for token in range(3, 20) if token not in before)
    (folder / "genai_config.json").write_text(json.dumps({"model": {"eos_token_id": [other]}}))
    assert load_tokenizer(folder).end_sources == {**before, other: ("genai_config.json",)}


def test_the_template_tells_where_no_file_does(tmp_path):
    spec = load(tmp_path, "{{ m.content + '<|im_end|>' }}")
    assert spec.stop_ids == (2,) and spec.end_sources == {2: (TEMPLATE,)} and not told(spec)


def test_the_template_adds_nothing_where_a_file_names_what_it_writes(tmp_path):
    template = "{{ m.content + '<|im_end|>' }}{{ content + '<|endoftext|>' }}"
    spec = load(tmp_path, template, config={"eos_token_id": 2})
    assert spec.end_sources == {2: ("config.json",)}


def test_a_base_models_end_is_kept_beside_that_of_the_template(tmp_path):
    spec = load(tmp_path, "{{ m.content + '<|im_end|>' }}", generation_config={"eos_token_id": 0})
    assert spec.end_sources == {0: ("generation_config.json",), 2: (TEMPLATE,)}


def test_every_file_counts_and_is_named(tmp_path):
    files = {
        "generation_config": {"eos_token_id": [7, 2], "stop_strings": ["<|im_start|>", "\n\n"]},
        "tokenizer_config": {"eos_token": {"content": "<|im_end|>"}},
        "special_tokens_map": {"eos_token": "<|endoftext|>"},
        "config": {"eos_token_id": 9, "text_config": {"eos_token_id": [10]}},
    }
    sources = load(tmp_path, **files).end_sources
    assert sources == {
        7: ("generation_config.json",),
        2: ("generation_config.json", "tokenizer_config.json"),
        0: ("special_tokens_map.json",),
        9: ("config.json",),
        10: ("config.json",),
        1: ("stop_strings",),
    }


def test_nothing_that_ends_generation_is_said(tmp_path):
    assert [code for code, _ in told(load(tmp_path))] == ["B762"]


def test_a_token_without_a_row_is_said(tmp_path):
    """A token beside tokenizer.json has the first id behind the embedding."""
    decoder = {"2048": {"content": "<|eot|>", "special": True}}
    spec = load(tmp_path, tokenizer_config={"eos_token": "<|eot|>", "added_tokens_decoder": decoder})
    found = told(spec)
    assert [code for code, _ in found] == ["B766", "B763", "B762"] and spec.stop_ids == ()
    assert "'<|eot|>'" in found[1][1] and "no row" in found[1][1]


def test_an_id_without_a_row_is_said(tmp_path):
    spec = load(tmp_path, generation_config={"eos_token_id": [2, 2048]})
    assert spec.stop_ids == (2,)
    assert told(spec) == [("B763", "eos_token_id 2048 of generation_config.json is left out: the model has 2048 ids")]


def test_an_id_that_is_no_token_is_said_and_ends_generation(tmp_path):
    spec = load(tmp_path, config={"eos_token_id": 2050, "vocab_size": 2060})
    assert spec.stop_ids == (2050,)
    ((code, message),) = told(spec)
    assert code == "B763" and "2050" in message and "config.json" in message


def test_a_token_with_another_id_than_listed_is_said(tmp_path):
    decoder = {"2055": {"content": "<|eot|>", "special": True}}
    config = {"vocab_size": 2060}
    spec = load(tmp_path, tokenizer_config={"eos_token": "<|eot|>", "added_tokens_decoder": decoder}, config=config)
    assert spec.stop_ids == (2048,)
    ((code, message),) = told(spec)
    assert code == "B766" and "2048" in message and "2055" in message


def test_many_odd_tokens_are_counted(tmp_path):
    rows = {str(3000 + number): {"content": f"<t{number}>"} for number in range(9)}
    files = {
        "tokenizer_config": {"added_tokens_decoder": rows, "eos_token": "<|im_end|>"},
        "config": {"vocab_size": 2060},
    }
    found = told(load(tmp_path, **files))
    assert [code for code, _ in found] == ["B766"] * 5 and found[-1][1] == "and 5 more tokens like these"


def test_the_end_token_of_the_map_goes_before_the_settings_as_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    files = {"tokenizer_config": {"eos_token": "<|im_end|>"}, "special_tokens_map": {"eos_token": "<|endoftext|>"}}
    spec = load(tmp_path, **files)
    assert spec.eos == AutoTokenizer.from_pretrained(tmp_path / "model").eos_token == "<|endoftext|>"
    assert json.loads((tmp_path / "model" / "special_tokens_map.json").read_text()) and set(spec.stop_ids) == {0, 2}


def test_another_folders_tokenizer_ends_where_the_model_ends_too(tmp_path):
    tokenizer = edited(tmp_path / "tokenizer", generation_config={"eos_token_id": 2})
    model = edited(tmp_path / "model", generation_config={"eos_token_id": 7, "stop_strings": "<|im_start|>"})
    assert load_tokenizer(tokenizer).stop_ids == (2,)
    assert load_tokenizer(tokenizer, model=model).stop_ids == (2, 7, 1)
    assert load_tokenizer(model, model=model).stop_ids == load_tokenizer(model).stop_ids == (7, 1)
