"""Which settings for generation count, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frontends.checkpoint.generation import SETTINGS, WITHOUT_EFFECT, Generation, effective, read_generation, unused
from ir.base.diag import LadingError


def read(folder: Path, generation: Any = None, config: Any = None) -> Generation:
    """The settings of a folder with these files."""
    for name, data in (("generation_config", generation), ("config", config)):
        if data is not None:
            (folder / f"{name}.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return read_generation(folder)


def codes(found: Generation) -> list[str]:
    return [item.code for item in found.warnings]


def test_every_key_of_transformers_is_known_and_has_its_default():
    from transformers import GenerationConfig

    defaults = GenerationConfig._get_default_generation_params()
    known = {*SETTINGS, *WITHOUT_EFFECT}
    assert known >= {*GenerationConfig().to_dict(), *defaults}
    for name, setting in SETTINGS.items():
        # A length of 20 is what transformers takes with a warning that asks for one.
        if name in defaults and name != "max_length":
            assert (defaults[name] or setting.default) == setting.default, name


def test_the_file_goes_before_config_json_as_a_whole(tmp_path):
    config = {"temperature": 0.5, "do_sample": True, "top_k": 50, "text_config": {"top_p": 0.3}}
    alone = read(tmp_path, config=config)
    assert alone.given == {"temperature": 0.5, "do_sample": True, "top_k": 50, "top_p": 0.3} and not alone.warnings
    both = read(tmp_path, {"top_p": 0.9, "min_p": None})
    assert both.given == {"top_p": 0.9} and codes(both) == ["F573"]
    assert "do_sample, temperature" in both.warnings[0].message and "top_k" not in both.warnings[0].message


def test_the_file_of_onnxruntime_genai_stands_in_for_it(tmp_path):
    search = {"do_sample": True, "top_k": 7, "temperature": 0.6, "max_length": 128, "past_present_share_buffer": True}
    (tmp_path / "genai_config.json").write_text(json.dumps({"search": search, "model": {"eos_token_id": 2}}))
    assert read(tmp_path).given == {"do_sample": True, "top_k": 7, "temperature": 0.6}
    assert read(tmp_path, {"top_k": 9}).given == {"top_k": 9}
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "genai_config.json").write_text(json.dumps({"search": {**search, "top_k": -1}}))
    with pytest.raises(LadingError, match="top_k") as caught:
        read(tmp_path)
    assert caught.value.code == "F571" and "genai_config.json" in str(caught.value)


def test_transformers_reads_the_same_file(tmp_path):
    from tests.support.settings.generation import EXAMPLE

    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    for path in EXAMPLE.iterdir():
        if path.name not in ("config.json", "generation_config.json"):
            (tmp_path / path.name).symlink_to(path)
    config = json.loads((EXAMPLE / "config.json").read_text())
    for generation in (None, {"top_p": 0.9}):
        found = read(tmp_path, generation, {**config, "do_sample": True, "temperature": 0.5})
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        prepared = model._prepare_generation_config(None)[0]
        wanted = {key: getattr(prepared, key) for key in effective(found.given) if hasattr(prepared, key)}
        got = effective(found.given)
        for key in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty"):
            assert got.get(key, SETTINGS[key].default) == wanted.get(key, SETTINGS[key].default), key


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("do_sample", "true", "F570"), ("do_sample", 1, "F570"), ("temperature", "0.7", "F570"),
        ("temperature", float("nan"), "F570"), ("temperature", float("inf"), "F570"), ("temperature", True, "F570"),
        ("temperature", -0.1, "F571"), ("top_k", "20", "F570"), ("top_k", 20.0, "F570"), ("top_k", True, "F570"),
        ("top_k", -1, "F571"), ("top_p", 1.5, "F571"), ("top_p", [0.9], "F570"), ("min_p", -1, "F571"),
        ("typical_p", 0, "F571"), ("repetition_penalty", 0, "F571"), ("repetition_penalty", "1.1", "F570"),
        ("suppress_tokens", 3, "F570"), ("suppress_tokens", [True], "F570"), ("suppress_tokens", [-1], "F570"),
        ("bad_words_ids", [3], "F570"), ("bad_words_ids", [[]], "F570"), ("sequence_bias", {"3": 1.0}, "F570"),
        ("sequence_bias", [[[3], "1"]], "F570"), ("max_new_tokens", 0, "F571"), ("max_length", "4096", "F570"),
        ("num_beams", 0, "F571"), ("stop_strings", [3], "F570"), ("stop_strings", "", "F570"),
        ("max_time", -1, "F571"), ("no_repeat_ngram_size", 1.5, "F570"), ("token_healing", 0, "F570"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(tmp_path, key, value, code):
    with pytest.raises(LadingError) as caught:
        read(tmp_path, {"do_sample": True, key: value})
    (problem,) = caught.value.diagnostics
    assert problem.code == code and problem.message.startswith(f"{key} is ") and problem.hint
    assert problem.where.endswith("generation_config.json")


def test_all_wrong_values_are_named_at_once(tmp_path):
    with pytest.raises(LadingError) as caught:
        read(tmp_path, {"do_sample": True, "top_k": "20", "top_p": 2})
    assert [item.code for item in caught.value.diagnostics] == ["F570", "F571"]


def test_a_minus_one_for_no_top_k_is_explained(tmp_path):
    with pytest.raises(LadingError) as caught:
        read(tmp_path, {"do_sample": True, "top_k": -1})
    assert "write 0" in caught.value.diagnostics[0].hint


def test_what_does_not_count_is_not_looked_at(tmp_path):
    found = read(tmp_path, {"top_k": "20", "temperature": 0.6, "top_p": 1.0})
    assert not found.warnings
    assert unused(found.given) == ["top_k", "temperature"]
    assert unused({**found.given, "do_sample": True}) == []
    assert "temperature" not in effective(found.given) and effective(found.given)["repetition_penalty"] == 1


def test_temperature_zero_is_greedy_and_said(tmp_path):
    assert codes(read(tmp_path, {"do_sample": True, "temperature": 0})) == ["F572"]
    assert not codes(read(tmp_path, {"temperature": 0}))


def test_keys_that_look_like_a_setting_are_named(tmp_path):
    odd = {"topK": 20, "top-p": 0.9, "repitition_penalty": 1.1, "chat_format": "x", "user_id": 3, "_commit_hash": "0"}
    found = read(tmp_path, odd)
    assert codes(found) == ["F574"] * 3 and not found.given
    assert [item.hint for item in found.warnings] == [
        f"did you mean {name!r}?" for name in ("top_k", "top_p", "repetition_penalty")
    ]


@pytest.mark.parametrize("text", ["[]", "{", '{"a": ' + "9" * 200 + "}", '"x"'])
def test_files_that_are_no_object_are_refused(tmp_path, text):
    with pytest.raises(LadingError) as caught:
        read(tmp_path, text)
    assert caught.value.code == "U904"


def test_a_byte_order_mark_is_no_fault(tmp_path):
    (tmp_path / "generation_config.json").write_bytes(b"\xef\xbb\xbf" + b'{"top_k": 3}')
    assert read_generation(tmp_path).given == {"top_k": 3}
