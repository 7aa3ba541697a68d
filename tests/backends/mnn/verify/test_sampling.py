"""Verification samples with the settings as written: what crashes, or is taken for something else, does not pass."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backends.mnn.sampling.translate import translate
from backends.mnn.target.releases import RELEASES
from backends.mnn.verify.sampling import trial, try_release
from backends.mnn.write.configs import config_for
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled, each_release, interpreters
from tools.compile.job import Request, Result, compile_model
from tools.shared.formats import Formats

PROMPT = [5, 6, 7, 8]
DRAWN = {"do_sample": True, "top_k": 3, "eos_token_id": 2}
ROWS = 300


def checkpoint(folder: Path, **generation: Any) -> Path:
    make_checkpoint(folder, "qwen2", vocab_size=ROWS, tie_word_embeddings=True)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("drawn")
    return compiled(checkpoint(base / "model", **DRAWN), base / "out", "int8")


def tried(folder: Path, version: str, ends: list[int], **given: Any) -> list[str]:
    """Codes of what is wrong with a folder on a release, judged by these settings."""
    sampler = translate(given, [RELEASES[version]], ROWS, {})
    found = try_release(folder, version, interpreters()[version], trial(PROMPT, 16, ends, ROWS), sampler)
    return [item.code for item in found]


def changed(folder: Path, copy: Path, version: str, **config: Any) -> Path:
    """A copy with other keys in the configuration that a release reads."""
    shutil.copytree(folder, copy)
    path = config_for(copy, version)
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return copy


@pytest.mark.parametrize("version", each_release())
def test_a_setting_that_crashes_does_not_pass(folder, tmp_path, version):
    assert tried(folder, version, [2], **DRAWN) == []
    broken = changed(folder, tmp_path / "broken", version, topK=0, top_k=0)
    with pytest.raises(LadingError) as caught:
        tried(broken, version, [2], **DRAWN)
    problem = caught.value.diagnostics[0]
    assert problem.code == "B760" and version in problem.message and "SIGSEGV" in problem.message and problem.hint


def test_a_setting_that_is_taken_for_another_does_not_pass(folder, tmp_path):
    version = next(reversed(interpreters()))
    wider = changed(folder, tmp_path / "wider", version, mixed_samplers=["temperature"], temperature=50.0)
    assert tried(wider, version, [2], **DRAWN) == ["B765"]
    # So hot that each of the three tokens comes as often as the others.
    hot = changed(folder, tmp_path / "hot", version, temperature=50.0)
    assert tried(hot, version, [2], **DRAWN) == []
    assert tried(hot, version, [2], **{**DRAWN, "top_k": 1}) == ["B765"]


def test_a_runtime_that_does_not_stop_does_not_pass(folder):
    version = next(reversed(interpreters()))
    assert tried(folder, version, [2, 9], **DRAWN) == ["B764"]
    assert tried(folder, version, [], **DRAWN) == []


def run_it(folder: Path, out: Path, verify: Any) -> Result:
    return compile_model(Request(str(folder), out, "fp16", verify=verify))


def test_verification_samples_on_the_installed_release_and_in_full_on_all(tmp_path):
    source = checkpoint(tmp_path / "model", **DRAWN, repetition_penalty=1.2)
    quick = run_it(source, tmp_path / "quick", "quick").contract.generation
    assert quick is not None and len(quick.tried) == 1 and not quick.lost
    full = run_it(source, tmp_path / "full", "full").contract.generation
    assert full is not None and full.tried == tuple(interpreters())
    assert dataclasses.replace(full, tried=quick.tried) == quick
    none = run_it(source, tmp_path / "none", "none").contract.generation
    assert none is not None and none.tried == ()


def test_what_is_lost_is_a_warning_in_the_summary_and_in_the_contract(tmp_path):
    source = checkpoint(tmp_path / "model", **DRAWN, min_p=0.1, typical_p=0.5, repetition_penalty=12.0)
    result = run_it(source, tmp_path / "out", "none")
    told = [item for item in result.warnings if item.code == "B761"]
    assert [(item.message.split(":")[0], item.hint) for item in told] == [
        ("MNN 3.4.0 to 3.6.1 has no equal of min_p 0.1", "it does not count there"),
        ("MNN 3.4.0 to 3.6.1 has no equal of repetition_penalty 12.0", "10.0 counts there"),
        ("MNN 3.4.0 to 3.4.1 has no equal of typical_p 0.5", "it does not count there"),
    ]
    found = result.contract.generation
    assert found is not None and [item.setting for item in found.lost] == ["min_p", "repetition_penalty", "typical_p"]
    assert [row.file for row in found.samplers] == ["config.json", "config.3.4.json"]
    files = ("generation_config.json", "tokenizer_config.json", "config.json")
    assert [(end.id, end.text, end.sources) for end in found.ends] == [(2, "<|im_end|>", files)]
    lines = dict(result.lines)["sampler"].splitlines()
    assert lines == [
        "3.4.0 to 3.4.1: temperature 1, top_k 3, repetition_penalty 10",
        "3.5.0 to 3.6.1: temperature 1, top_k 3, typical_p 0.5, repetition_penalty 10",
    ]


def test_settings_without_effect_and_the_end_are_told(tmp_path):
    source = checkpoint(tmp_path / "model", temperature=0.5, top_p=0.9, max_new_tokens=64)
    (source / "config.json").write_text(
        json.dumps({**json.loads((source / "config.json").read_text()), "eos_token_id": 1})
    )
    lines = dict(run_it(source, tmp_path / "out", "none").lines)
    text = "the most likely token, at most 64 new tokens (temperature, top_p without effect, as do_sample is not true)"
    assert lines["sampler"] == text
    assert lines["ends at"] == "<|im_end|> (2), <|im_start|> (1)"


def test_a_model_that_is_no_checkpoint_generates_as_the_folder_of_its_tokenizer_says(tmp_path):
    source = checkpoint(tmp_path / "model", **DRAWN)
    formats = Formats()
    formats.write(formats.read(str(source)), str(tmp_path / "model.onnx"))
    request = Request(str(tmp_path / "model.onnx"), tmp_path / "out", "int8", verify="none", tokenizer=source)
    found = compile_model(request).contract.generation
    assert found is not None and found.samplers[0].mode == "sample" and [end.id for end in found.ends] == [2]
