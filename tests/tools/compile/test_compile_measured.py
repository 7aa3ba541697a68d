"""Compiling with calibration: limits on the command line, plans that are saved and fed back, and what is refused."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from backends.contract import read
from passes.precision.plan_file import load_rules
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import ROOT
from tools.compile.command import main


def run(*arguments: object):
    """The command in this process."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small checkpoint with an untied head."""
    return make_checkpoint(tmp_path_factory.mktemp("measured") / "source", "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Text enough for a few windows of the small checkpoint."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text((ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")[:12000], encoding="utf-8")
    return path


def test_a_budget_is_kept_and_its_plan_can_be_fed_back(source, text, tmp_path):
    plan = tmp_path / "plan.toml"
    first = run(source, "-o", tmp_path / "first", "--budget", "6bpw", "--calibration", text, "--save-plan", plan,
                "--kl-bar", 1e9)  # fmt: skip
    assert first.exit_code == 0, first.output
    contract = read(tmp_path / "first")
    own = [item for item in contract.weights if item.shared_with is None]
    count = sum(item.shape[0] * item.shape[1] for item in own)
    headers = sum(6 + (1 << item.storage.bits) for item in own if item.storage.bits <= 8)
    assert 5.0 < 8 * (sum(item.bytes for item in own) - headers) / count <= 6.0
    assert len({item.storage.bits for item in contract.weights}) > 1
    assert len(load_rules(plan)) == len(contract.weights)
    second = run(source, "-o", tmp_path / "second", "--passes", f'calibrated{{plan="{plan}"}}', "--calibration", text,
                 "--verify", "none")  # fmt: skip
    assert second.exit_code == 0, second.output
    for name in ("llm.mnn.weight", "llm.mnn"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_size_is_kept_by_the_file_that_is_written(source, text, tmp_path):
    result = run(source, "-o", tmp_path / "out", "--passes", "mixed", "--max-size", "90kB", "--calibration", text,
                 "--verify", "none")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert 60_000 < (tmp_path / "out" / "llm.mnn.weight").stat().st_size <= 90_000


def test_the_packaged_sample_serves_when_no_text_is_named(source, tmp_path):
    result = run(source, "-o", tmp_path / "out", "--passes", "calibrated", "--verify", "none")
    assert result.exit_code == 0, result.output
    assert {item.storage.method for item in read(tmp_path / "out").weights if "embed" not in item.name} == {"gptaq"}


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--budget", "3bpw", "--min-speed", "0.95x"), "Q485", "cannot be kept together"),
        (("--device", "abacus"), "Q479", "known: x86"),
        (("--device", "x86", "--passes", "canonicalize"), "U907", "no assign-precision to choose for a device"),
        (("--budget", "4bpw", "--passes", "canonicalize"), "U907", "no assign-precision"),
        (("--save-plan", "plan.toml", "--passes", "canonicalize", "--to", "onnx"), "U907", "no precision plan"),
        (("--budget", "4bpw", "--calibration", "no-such-file.txt"), "U903", "no-such-file"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_work(source, tmp_path, options, code, says):
    result = run(source, "-o", tmp_path / "out", "--verify", "none", *options)
    assert result.exit_code == 1 and f"error[{code}]" in result.stderr and says in result.stderr
    assert not (tmp_path / "out").exists()
