"""Samplers of existing configurations that crash: found by the doctor, harmless after repair, as real runs say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.mnn.doctor.examine import examine
from backends.mnn.run.native import run_model
from backends.mnn.sampling.hazards import harmless, hazard
from backends.mnn.target.releases import RELEASES, target
from backends.mnn.write.configs import config_for
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled, each_release, interpreters
from tools.repair.command import repair

OLD = {"3.4.0", "3.4.1"}
EVERY = set(RELEASES)


def mixed(*steps: str, **keys: Any) -> dict[str, Any]:
    return {"sampler_type": "mixed", "mixed_samplers": list(steps), **keys}


CASES: dict[str, tuple[dict[str, Any], set[str], list[str]]] = {
    "top-k of 0": (mixed("topK", "topP", "temperature", topK=0, top_k=0, topP=0.9), EVERY, ["topP", "temperature"]),
    "top-k of 0 in the new spelling": (mixed("topK", "temperature", top_k=0), EVERY - OLD, ["temperature"]),
    "top-k of 0 where steps are absent": (
        {"sampler_type": "mixed", "topK": 0},
        EVERY,
        ["tfs", "typical", "topP", "min_p", "temperature"],
    ),
    "top-k alone": ({"sampler_type": "topK", "topK": 0}, EVERY, ["temperature"]),
    "top-p of 0": (mixed("penalty", "topP", "temperature", topP=0.0), OLD, ["penalty", "greedy"]),
    "temperature of 0": (mixed("temperature", temperature=0.0), EVERY, ["greedy"]),
    "no steps": (mixed(), EVERY, ["greedy"]),
}
SOUND = [
    {}, {"sampler_type": "greedy", "topK": 0}, mixed("topK", "temperature", topK=1), mixed("penalty", "greedy"),
    mixed("topK", "temperature", top_k=-1, topK=3), {"sampler_type": "temperature", "topP": 0.0, "topK": 0},
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_found_and_what_it_becomes(name):
    config, broken, steps = CASES[name]
    assert {version for version, release in RELEASES.items() if hazard(config, release)} == broken
    change = harmless(config, list(RELEASES.values()))
    assert change == {"sampler_type": "mixed", "mixed_samplers": steps}
    assert not any(hazard({**config, **change}, release) for release in RELEASES.values())


@pytest.mark.parametrize("config", SOUND, ids=str)
def test_sound_samplers_are_left_alone(config):
    assert not any(hazard(config, release) for release in RELEASES.values())
    assert harmless(config, list(RELEASES.values())) == {}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("hazards")
    return compiled(make_checkpoint(base / "model", "qwen2", vocab_size=300), base / "out", "int8")


def with_sampler(model: Path, folder: Path, config: dict[str, Any]) -> Path:
    """A copy without contract whose configurations have this sampler and no other."""
    folder.mkdir()
    for path in model.iterdir():
        if path.name == "contract.json":
            continue
        data = path.read_bytes()
        if path.name.startswith("config"):
            plain = {key: value for key, value in json.loads(data).items() if key != "sampler_type"}
            data = json.dumps({**plain, **config}).encode()
        (folder / path.name).write_bytes(data)
    return folder


def generated(folder: Path, version: str) -> list[list[int]] | None:
    """What three runs of a release give, None where it crashes or takes the same token every time."""
    actions = [{"do": "generate", "prompt": [5, 6, 7, 8], "tokens": 6}] * 3
    run = run_model(config_for(folder, version), actions, overrides={}, interpreter=interpreters()[version])
    if run.failure is not None:
        return None
    ids = [result["ids"] for result in run.results if result is not None]
    return None if {token for row in ids for token in row} == {299} else ids


@pytest.mark.parametrize("version", each_release())
def test_the_doctor_says_what_really_happens(model, tmp_path, version):
    for number, (config, broken, _) in enumerate(CASES.values()):
        folder = with_sampler(model, tmp_path / str(number), config)
        assert (generated(folder, version) is None) == (version in broken), config


@pytest.mark.parametrize("name", ["top-k of 0", "temperature of 0", "no steps"])
def test_repair_writes_a_sampler_that_runs(model, tmp_path, name):
    folder = with_sampler(model, tmp_path / "old", CASES[name][0])
    report = examine(folder, target("portable").releases)
    assert {item.code for item in report.findings if item.severity == "error"} == {"B767"}
    assert all(item.mended for item in report.findings if item.code == "B767")
    repair(folder, tmp_path / "new")
    assert examine(tmp_path / "new", target("portable").releases).healthy
    version = next(reversed(interpreters()))
    assert generated(tmp_path / "new", version) is not None


def test_a_tokenizer_in_which_nothing_ends_is_a_warning(tmp_path):
    source = make_checkpoint(tmp_path / "model", "qwen2", eos_token_id=...)
    (source / "tokenizer_config.json").write_text("{}")
    (source / "chat_template.jinja").unlink(missing_ok=True)
    folder = compiled(source, tmp_path / "out", "int8")
    report = examine(folder, target("portable").releases)
    assert report.healthy
    assert [item.code for item in report.findings] == ["B762", "B762"]
