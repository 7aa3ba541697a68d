"""Checkpoints, options and folders as people report them to exporters of language models, each an edit on the example.

What must hold in each: the outcome is that of `transformers`, or what is not is said.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backends.mnn.doctor.examine import examine
from backends.mnn.target.releases import target
from tests.support.paths import EXAMPLE
from tests.support.runs import compiled
from tools.compile.command import main as compile_command
from tools.diff.command import main as diff_command
from tools.run.command import main as run_command

Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """An edit, and what a compilation without verification must end with.

    Attributes:
        edit: changes a copy of the example.
        says: parts of what is printed.
        code: of the error, where it is refused.
        config: keys of the ``config.json`` that is written; None for keys that must not stand there.
    """

    edit: Edit
    says: tuple[str, ...] = ()
    code: str = ""
    config: Mapping[str, Any] | None = None


def keys(name: str, *gone: str, **given: Any) -> Edit:
    """Change keys of a JSON file of the folder."""

    def edit(folder: Path) -> None:
        path = folder / name
        data = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({k: v for k, v in {**data, **given}.items() if k not in gone}), encoding="utf-8")

    return edit


def generation(**given: Any) -> Edit:
    """Change generation_config.json."""
    return keys("generation_config.json", **given)


def model(*gone: str, **given: Any) -> Edit:
    """Change config.json."""
    return keys("config.json", *gone, **given)


def tokenizer(**given: Any) -> Edit:
    """Change tokenizer_config.json."""
    return keys("tokenizer_config.json", **given)


def written(name: str, data: bytes) -> Edit:
    """Write a file."""

    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return edit


def marked(*names: str) -> Edit:
    """Begin files with a byte order mark, as some editors do."""

    def edit(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())

    return edit


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(folder: Path) -> None:
        for item in edits:
            item(folder)

    return edit


def added_tokens(change: Callable[[list[dict[str, Any]]], None]) -> Edit:
    """Change the added tokens of tokenizer.json."""

    def edit(folder: Path) -> None:
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data["added_tokens"])
        path.write_text(json.dumps(data), encoding="utf-8")

    return edit


def header(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Edit:
    """Change the header of the weights: names, types and places; the data stay."""

    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        text = json.dumps(change(json.loads(data[8 : 8 + length]))).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return edit


def prefixed(prefix: str) -> Edit:
    """Other names of the tensors, as wrappers of models leave them."""
    return header(lambda rows: {name if name == "__metadata__" else prefix + name: row for name, row in rows.items()})


def not_a_number(folder: Path) -> None:
    """A NaN among the weights of one matrix."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])["model.layers.1.mlp.down_proj.weight"]["data_offsets"][0]
    data[start + 10 : start + 12] = b"\xc0\x7f"
    path.write_bytes(data)


def zeros(folder: Path) -> None:
    """One matrix of zeros, as in a sparse file whose download stopped."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + length])["model.layers.1.mlp.down_proj.weight"]["data_offsets"]
    data[8 + length + start : 8 + length + stop] = bytes(stop - start)
    path.write_bytes(data)


def without_template(folder: Path) -> None:
    """Take the chat template away, and leave one under another name."""
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").rename(folder / "additional_chat_templates" / "tool_use.jinja")


def second_shard_missing(folder: Path) -> None:
    """Leave the first of two shards, and no index."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def _as_bytes(rows: Mapping[str, Any], name: str, dtype: str) -> dict[str, Any]:
    """A tensor of twice as many numbers of one byte each."""
    row = rows[name]
    return {name: {**row, "dtype": dtype, "shape": [2 * row["shape"][0], *row["shape"][1:]]}}


GREEDY = {"sampler_type": "greedy"}

CASES = {
    # ---- generation_config.json ----
    "temperature 0 with do_sample": Case(generation(do_sample=True, temperature=0.0), ("F572",), config=GREEDY),
    "top_p 0": Case(generation(do_sample=True, top_p=0.0), config=GREEDY),
    "top_p 1.5": Case(generation(do_sample=True, top_p=1.5), ("top_p is 1.5",), "F571"),
    "negative penalty": Case(generation(repetition_penalty=-1.1), ("repetition_penalty is -1.1",), "F571"),
    "numbers as text": Case(generation(do_sample=True, temperature="0.7"), ('temperature is "0.7"',), "F570"),
    "do_sample as text": Case(generation(do_sample="true"), ("not true or false",), "F570"),
    "top_k above the vocabulary": Case(
        generation(do_sample=True, top_k=10**7), config={"mixed_samplers": ["temperature"], "topK": None}
    ),
    "end tokens beyond the rows": Case(
        generation(eos_token_id=[2, 999999]), ("eos_token_id 999999", "<|im_end|> (2)"), config=GREEDY
    ),
    "end token as text": Case(generation(eos_token_id="2"), ("eos_token_id '2'",), "B652"),
    "end token null": Case(generation(eos_token_id=None), ("<|im_end|> (2)",)),
    "forced tokens": Case(generation(forced_bos_token_id=5), ("forced_bos_token_id 5",)),
    "beams": Case(generation(num_beams=4), ("num_beams 4",)),
    "stop strings": Case(generation(stop_strings=["User:"]), ("stop_strings",)),
    "penalties of other programs": Case(
        generation(presence_penalty=1.5), ("'presence_penalty' is no setting of transformers and has no effect",)
    ),
    "empty file": Case(written("generation_config.json", b""), ("generation_config.json is empty",), "F564"),
    "byte order mark": Case(marked("generation_config.json", "config.json"), config=GREEDY),
    "a comma too many": Case(
        written("generation_config.json", b'{"do_sample": true,}'), ("generation_config",), "U904"
    ),
    # ---- tokenizer files ----
    "byte order marks of tokenizer files": Case(marked("tokenizer.json", "tokenizer_config.json")),
    "a space before texts": Case(tokenizer(add_prefix_space=True), ("B786", "add_prefix_space is true")),
    "special tokens read as text": Case(tokenizer(split_special_tokens=True), ("B786", "split_special_tokens")),
    "named templates, none of them default": Case(without_template, ("there is: tool_use",), "B650"),
    "an added token behind the last row": Case(
        added_tokens(lambda rows: rows.append({**rows[2], "content": "<tool>", "id": 2048})), ("<tool>", "left out")
    ),
    "an end token that is no special one": Case(
        added_tokens(lambda rows: rows[2].update(special=False)), ("<|im_end|> (2)",)
    ),
    "an end token twice": Case(added_tokens(lambda rows: rows.append(dict(rows[2]))), ("<|im_end|> (2)",)),
    "several end tokens as text": Case(tokenizer(eos_token=["<|im_end|>"]), ("eos_token",), "B641"),
    "an end token that nobody knows": Case(tokenizer(eos_token="</s>"), ("</s>", "<|im_end|> (2)")),
    # ---- config.json ----
    "key/value heads missing": Case(
        model("num_key_value_heads"), ("num_key_value_heads is missing, and 32 is what qwen2 then has",), "F536"
    ),
    "a class that judges texts": Case(
        model(architectures=["Qwen2ForSequenceClassification"]), ("this is a classifier of texts",), "F594"
    ),
    "code of its own": Case(model(auto_map={"AutoModelForCausalLM": "own.Model"}), ("code of the checkpoint",)),
    "epsilon as text": Case(model(rms_norm_eps="1e-06"), ("rms_norm_eps",), "F531"),
    "no head of its own": Case(model(tie_word_embeddings=False), ("lm_head.weight is missing",), "F550"),
    "too many layer types": Case(model(layer_types=["full_attention"] * 28), ("a list of 4 entries",), "F531"),
    "a rope for pictures": Case(
        model("rope_parameters", rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]}), ("mrope",), "F540"
    ),
    "a window that is off": Case(model(sliding_window=4096, max_window_layers=28), config=GREEDY),
    "quantized, it says": Case(
        model(quantization_config={"quant_method": "gptq", "bits": 4}), ("every weight is stored in plain numbers",)
    ),
    "padded rows promised": Case(model(vocab_size=2176), ("[2176, 256]",), "F552"),
    "fewer layers": Case(model(num_hidden_layers=2, layer_types=["full_attention"] * 2), ("2 layers",), "F551"),
    # ---- files of weights ----
    "one of two shards": Case(second_shard_missing, ("1 of the 2 files model-...-of-2 is here",), "F524"),
    "not a number": Case(not_a_number, ("row 0 has NaN or infinity", "layers.1.mlp.down_proj"), "Q402"),
    "a matrix of zeros": Case(
        zeros, ("F575", "1 of 39 weights is zero everywhere, such as model.layers.1.mlp.down_proj.weight")
    ),
    "names of torch.compile": Case(prefixed("_orig_mod."), config=GREEDY),
    "names of a parallel trainer": Case(prefixed("module."), config=GREEDY),
    "names inside a model of pictures": Case(prefixed("language_model."), config=GREEDY),
    "format flax": Case(header(lambda rows: {**rows, "__metadata__": {"format": "flax"}}), config=GREEDY),
    "a tensor as 8-bit floats": Case(
        header(lambda rows: {**rows, **_as_bytes(rows, "model.norm.weight", "F8_E4M3")}), ("quantized (FP8)",), "F535"
    ),
    "a web page": Case(written("model.safetensors", b"<!DOCTYPE html><html>"), ("a web page",), "F564"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(EXAMPLE, tmp_path / "model")


@pytest.mark.parametrize("name", CASES)
def test_it_is_right_or_said(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    case = CASES[name]
    case.edit(folder)
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--passes", "default", "--verify", "none"]
    result = CliRunner().invoke(compile_command, arguments)
    printed = " ".join((result.stdout + result.stderr).split())
    assert result.exit_code == (1 if case.code else 0), printed
    assert f"error[{case.code}]" in printed or not case.code, printed
    assert [words for words in case.says if words not in printed] == [], printed
    assert (tmp_path / "out").exists() is not bool(case.code)
    for key, value in (case.config or {}).items():
        assert json.loads((tmp_path / "out" / "config.json").read_text()).get(key) == value, key


@pytest.mark.parametrize(
    "edit",
    [
        generation(do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, eos_token_id=[2, 0]),
        both(generation(do_sample=True, temperature=0.6, top_p=0.95, top_k=20), tokenizer(add_prefix_space=False)),
        generation(do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[2, 0, 1]),
    ],
    ids=["Qwen2.5", "Qwen3", "Llama 3"],
)
def test_what_ordinary_models_say_raises_no_warning(edit, folder, tmp_path):
    edit(folder)
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--passes", "default", "--verify", "none"]
    result = CliRunner().invoke(compile_command, arguments)
    assert result.exit_code == 0 and "warning" not in result.stdout + result.stderr, result.output


def test_calibration_reads_settings_behind_a_byte_order_mark(folder, tmp_path):
    marked("tokenizer_config.json", "tokenizer.json")(folder)
    chat = {"messages": [{"role": "user", "content": "weather? " * 20}, {"role": "assistant", "content": "fine " * 20}]}
    (tmp_path / "chats.jsonl").write_text("\n".join([json.dumps(chat)] * 10), encoding="utf-8")
    compiled(folder, tmp_path / "out", "calibrated", calibration=tmp_path / "chats.jsonl")
    assert (tmp_path / "out" / "contract.json").is_file()


# ---- what was written, edited by hand ----


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return compiled(EXAMPLE, tmp_path_factory.mktemp("made") / "model", "default")


def test_other_settings_do_not_break_a_model(directory, tmp_path):
    edited = shutil.copytree(directory, tmp_path / "edited")
    keys("config.json", thread_num=8)(edited)
    report = examine(edited, target("portable").releases)
    assert report.healthy
    (found,) = report.findings
    assert found.severity == "warning" and "edited after it was written" in found.message


def test_zeros_of_the_checkpoint_are_no_damage_of_the_directory(folder, tmp_path):
    zeros(folder)
    report = examine(compiled(folder, tmp_path / "out", "default"), target("portable").releases)
    assert report.healthy and [item.code for item in report.findings] == ["B782"]
    (tmp_path / "out" / "contract.json").unlink()
    assert not examine(tmp_path / "out", target("portable").releases).healthy


def test_an_edited_directory_is_not_the_same(directory, tmp_path):
    edited = shutil.copytree(directory, tmp_path / "edited")
    same = CliRunner().invoke(diff_command, [str(directory), str(edited)])
    assert same.exit_code == 0 and same.output == "the same\n"
    keys("config.json", llm_model="gone.mnn")(edited)
    other = CliRunner().invoke(diff_command, [str(directory), str(edited)])
    assert other.exit_code == 1 and "config.json: as written -> C811" in other.output
    again = shutil.copytree(edited, tmp_path / "again")
    assert CliRunner().invoke(diff_command, [str(edited), str(again)]).exit_code == 0
    keys("config.json", llm_model="here.mnn")(again)
    assert CliRunner().invoke(diff_command, [str(edited), str(again)]).exit_code == 1


def test_an_answer_without_tokens_is_no_answer(directory, tmp_path):
    edited = shutil.copytree(directory, tmp_path / "edited")
    (edited / "config.json").write_text("")
    result = CliRunner().invoke(run_command, [str(edited), "--prompt", "import os", "--max-tokens", "4"])
    assert result.exit_code == 1 and "error[B757]" in result.stderr and "generates no token" in result.stderr


# ---- options ----


@pytest.mark.parametrize("option", ["--max-kl", "--kl-bar"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_limits_are_positive_numbers(option, value, folder, tmp_path):
    result = CliRunner().invoke(compile_command, [str(folder), "-o", str(tmp_path / "out"), option, value])
    assert result.exit_code == 2 and f"Invalid value for '{option}'" in result.output


def test_a_text_that_is_too_short_to_measure_is_told(folder, tmp_path):
    (tmp_path / "text.txt").write_text("hello", encoding="utf-8")
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--passes", "default", "--text", str(tmp_path / "text.txt")]
    result = CliRunner().invoke(compile_command, arguments)
    assert result.exit_code == 0 and "B787" in result.output and "fills no window" in result.output


def test_a_release_with_a_sampler_of_its_own_is_not_judged_by_another(folder, tmp_path):
    arguments = [str(folder), "-o", str(tmp_path / "out"), "--passes", "default", "--target", "3.0.0"]
    result = CliRunner().invoke(compile_command, arguments)
    assert result.exit_code == 0 and "repetition_penalty 1.1" in " ".join(result.output.split())
