"""The compile command as a user meets it: output, options, exit codes, and one coded message for every bad input."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.contract import check_files, read
from backends.mnn.write.configs import config_for
from tests.support.checkpoints import hot_tensors, make_checkpoint, write_weights
from tests.support.paths import ROOT
from tests.support.suite.code_record import expect_code
from tools.compile.command import main
from tools.compile.job import EXAMPLE


def run(*arguments: object):
    """The command in this process; the result has exit_code, stdout and stderr."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


def fails(tmp_path: Path, code: str, *arguments: object, says: str = "") -> str:
    """Run, and require exit code 1, one message with the code, no traceback and nothing left behind."""
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments, "-o", tmp_path / "made" / "out", "--verify", "none")
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert f"error[{code}]" in result.stderr and says in result.stderr
    assert "Traceback" not in result.stderr and result.exception.__class__ is SystemExit
    assert sorted(tmp_path.rglob("*")) == before
    return result.stderr


@pytest.fixture
def source(tmp_path):
    """A small sound checkpoint to be damaged."""
    return make_checkpoint(tmp_path / "source", "qwen2")


def edit_config(source: Path, **changes):
    path = source / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def rewrite(source: Path, change) -> None:
    """Change the tensors of a checkpoint."""
    tensors = hot_tensors(json.loads((source / "config.json").read_text()), 0, "bf16")
    change(tensors)
    for path in source.glob("*.safetensors"):
        path.unlink()
    write_weights(source, tensors)


# ---- what works ----


def test_example_compiles_by_the_first_command_of_the_readme(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "tools.compile", "--passes", "default", "-o", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "def tearDownModule" in result.stdout and "perplexity" in result.stdout
    contract = read(tmp_path / "out")
    lines = result.stdout.splitlines()
    at = lines.index(contract.verdict.text)
    # A long path has a line of its own.
    assert lines[at + 1].startswith("written to") and len(lines) <= at + 3
    shown = (ROOT / "README.md").read_text().split("\nwritten to build/")[0].splitlines()[-1]
    numbers = r"[\d.]+(?:e-\d\d)?"
    assert re.sub(numbers, "N", shown) == re.sub(numbers, "N", contract.verdict.text)
    assert check_files(contract, tmp_path / "out") == []
    assert {item.reference for item in contract.verified} == {"float", "decoded weights", "runtime model"}


def test_directory_holds_what_the_runtimes_read(tmp_path):
    assert run("-o", tmp_path / "out", "--verify", "none").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "config.3.4.json", "config.json", "contract.json", "llm.mnn", "llm.mnn.weight", "llm_config.json",
        "tokenizer.mtok", "tokenizer.txt",
    ]  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    model = json.loads((tmp_path / "out" / "llm_config.json").read_text())
    assert not set(config) & set(model)
    assert model["attention_mask"] == "float" and len(model["tie_embeddings"]) == 5


def test_one_release_as_target_needs_one_tokenizer(tmp_path):
    assert run("-o", tmp_path / "out", "--verify", "none", "--target", "3.6.1").exit_code == 0
    assert not (tmp_path / "out" / "tokenizer.txt").exists()
    assert read(tmp_path / "out").target.releases == ("3.6.1",)


def test_old_release_as_target_gets_its_tokenizer_in_the_one_configuration(tmp_path):
    out = tmp_path / "out"
    assert run("-o", out, "--verify", "none", "--target", "3.4.1").exit_code == 0
    assert not (out / "tokenizer.mtok").exists()
    assert json.loads((out / config_for(out, "3.4.1")).read_text())["tokenizer_file"] == "tokenizer.txt"


def test_newest_target_gets_the_smallest_form_that_it_reads(tmp_path):
    assert run("-o", tmp_path / "all", "--verify", "none").exit_code == 0
    assert run("-o", tmp_path / "new", "--target", ">=3.6").exit_code == 0
    scales = [{item.storage.scale_dtype for item in read(tmp_path / name).weights} for name in ("all", "new")]
    assert scales == [{"f32"}, {"f16"}]
    sizes = [(tmp_path / name / "llm.mnn.weight").stat().st_size for name in ("all", "new")]
    assert sizes[1] < 0.92 * sizes[0]
    asked = run("-o", tmp_path / "asked", "--target", "3.6.1", "--passes", "default{scale=f32}", "--verify", "none")
    assert asked.exit_code == 0 and {item.storage.scale_dtype for item in read(tmp_path / "asked").weights} == {"f32"}


def test_half_scales_are_written_for_releases_that_read_them_only(tmp_path):
    options = ("--passes", "default{scale=f16}", "--verify", "quick")
    assert run("-o", tmp_path / "new", *options, "--target", "3.6.1").exit_code == 0
    fails(tmp_path, "B603", "--passes", "default{scale=f16}", says="3.4.0, 3.4.1, 3.5.0")


def test_json_output_is_one_object(tmp_path):
    result = run("-o", tmp_path / "out", "--json", "--verify", "quick")
    data = json.loads(result.stdout)
    assert data["out"] == str(tmp_path / "out") and data["verified"] and data["sample"]["continuation"]
    assert 5 < data["bits_per_weight"] < 6


def test_errors_are_json_too(tmp_path):
    result = run(tmp_path / "none", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["errors"][0]["code"] == "F500"


def test_quiet_prints_nothing(tmp_path):
    result = run("-o", tmp_path / "out", "--quiet", "--verify", "none")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_guards_are_written_and_listed_when_asked_for(tmp_path):
    assert run("-o", tmp_path / "out", "--verify", "none", "--guard").exit_code == 0
    contract = read(tmp_path / "out")
    assert {"check_inputs.py", "lading_guard.h"} <= {item.path for item in contract.files}
    assert check_files(contract, tmp_path / "out") == []


def test_list_passes_names_passes_options_and_pipelines():
    text = run("--list-passes").stdout
    assert "assign-precision" in text and "logits-bits" in text and "int4" in text
    data = json.loads(run("--list-passes", "--json").stdout)
    assert {"discover-inputs", "insert-qdq", "legalize-mnn"} <= {item["name"] for item in data["passes"]}


def test_print_pipeline_is_canonical():
    text = run("--passes", "int8{ block=32 }", "--print-pipeline").stdout.strip()
    assert "assign-precision{bits=8 block=32}" in text
    assert run("--passes", text, "--print-pipeline").stdout.strip() == text


def test_dump_ir_shows_every_step(tmp_path):
    result = run("-o", tmp_path / "out", "--verify", "none", "--dump-ir", tmp_path / "ir", "--verify-each")
    assert result.exit_code == 0, result.output
    names = [path.name for path in sorted((tmp_path / "ir").glob("*.lading"))]
    assert names[0] == "000-input.lading" and any("insert-qdq" in name for name in names)
    assert "DequantizeLinear" in next((tmp_path / "ir").glob("*insert-qdq*.lading")).read_text()


def test_check_numbers_follows_the_graph_through_every_pass(tmp_path):
    result = run("-o", tmp_path / "out", "--verify", "none", "--passes", "fp32", "--check-numbers")
    assert result.exit_code == 0, result.output


def test_force_replaces_a_directory_written_before(tmp_path):
    out = tmp_path / "out"
    assert run("-o", out, "--verify", "none").exit_code == 0
    assert "B630" in run("-o", out, "--verify", "none").stderr
    assert run("-o", out, "--verify", "none", "--force", "--passes", "int8").exit_code == 0
    assert {item.storage.bits for item in read(out).weights} == {8}


def test_full_verification_of_every_width_is_recorded(tmp_path):
    result = run("-o", tmp_path / "out", "--passes", "int8", "--verify", "full", "--text", EXAMPLE / "evaluation.txt")
    assert result.exit_code == 0, result.output
    contract = read(tmp_path / "out")
    exact = next(item for item in contract.verified if item.reference == "float" and item.settings.memory == "normal")
    assert exact.kl < 1e-3 and exact.top1 > 0.98 and abs(exact.perplexity / exact.perplexity_reference - 1) < 0.01
    assert all(item.error is not None and 0 < item.error.rms_relative < 0.02 for item in contract.weights)


def test_ropes_that_change_with_the_length_are_verified_where_they_are_steady(tmp_path):
    scaling = {"rope_type": "dynamic", "factor": 4.0}
    source = make_checkpoint(tmp_path / "source", "llama", max_position_embeddings=40, rope_scaling=scaling)
    result = run(source, "-o", tmp_path / "out", "--passes", "fp32", "--verify", "full")
    assert result.exit_code == 0, result.output
    assert all(item.decode_equal_tokens == item.decode_tokens > 0 for item in read(tmp_path / "out").verified)


# ---- what does not ----


def test_model_that_is_not_there(tmp_path):
    fails(tmp_path, "F500", tmp_path / "nowhere", says="no such folder")


def test_model_that_is_a_file(tmp_path, source):
    fails(tmp_path, "F501", source / "config.json")


def test_folder_without_config(tmp_path, source):
    (source / "config.json").unlink()
    fails(tmp_path, "F503", source)


def test_folder_without_weights(tmp_path, source):
    (source / "model.safetensors").unlink()
    fails(tmp_path, "F502", source)


def test_pickled_weights_are_not_read(tmp_path, source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    fails(tmp_path, "F502", source, says="pickled")


def test_unknown_family(tmp_path, source):
    edit_config(source, model_type="qwen22")
    fails(tmp_path, "F533", source, says="model family 'qwen22' is not supported")


def test_truncated_weights(tmp_path, source):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = fails_with_any(tmp_path, source)
    assert "model.safetensors" in message


def test_header_that_claims_more_than_the_file(tmp_path, source):
    path = source / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])
    assert "model.safetensors" in fails_with_any(tmp_path, source)


def fails_with_any(tmp_path: Path, source: Path) -> str:
    result = run(source, "-o", tmp_path / "out", "--verify", "none")
    assert result.exit_code == 1 and "error[F5" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    return result.stderr


@pytest.mark.parametrize("pipeline", ["default", "fp32", "fp16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path, source, pipeline, bad):
    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = bad

    rewrite(source, spoil)
    message = fails_like(tmp_path, source, pipeline)
    assert "model.layers.1.mlp.up_proj.weight" in message and "row 7" in message


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_vectors_that_are_not_finite(tmp_path, source, name):
    def spoil(tensors):
        tensors[name][3] = np.nan

    rewrite(source, spoil)
    assert name in fails_like(tmp_path, source, "default")


def fails_like(tmp_path: Path, source: Path, pipeline: str) -> str:
    before = sorted(tmp_path.rglob("*"))
    result = run(source, "-o", tmp_path / "out", "--verify", "none", "--passes", pipeline)
    assert result.exit_code == 1 and "error[" in result.stderr and "Traceback" not in result.stderr, result.output
    assert sorted(tmp_path.rglob("*")) == before
    return result.stderr


def test_missing_tensor(tmp_path, source):
    rewrite(source, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    fails(tmp_path, "F550", source, says="model.layers.1.mlp.up_proj.weight")


def test_extra_tensor(tmp_path, source):
    rewrite(source, lambda tensors: tensors.update({"model.layers.0.extra": np.zeros(3, np.float32)}))
    fails(tmp_path, "F551", source, says="model.layers.0.extra")


def test_misshapen_tensor(tmp_path, source):
    def spoil(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]

    rewrite(source, spoil)
    fails(tmp_path, "F552", source, says="[63]")


def test_missing_tokenizer(tmp_path, source):
    (source / "tokenizer.json").unlink()
    fails(tmp_path, "B640", source)


def test_damaged_generation_config(tmp_path, source):
    (source / "generation_config.json").write_text("[")
    message = fails_like(tmp_path, source, "default")
    assert "generation_config.json" in message


def test_full_disk(tmp_path):
    limit = 1 << 20
    result = subprocess.run(
        [sys.executable, "-m", "tools.compile", "-o", str(tmp_path / "out"), "--verify", "none"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    expect_code(result.stderr, "B620")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    result = run("-o", tmp_path / "file" / "out", "--verify", "none")
    assert result.exit_code == 1 and "error[B632]" in result.stderr


def test_output_that_holds_other_things(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("x")
    result = run("-o", tmp_path / "mine", "--force", "--verify", "none")
    assert result.exit_code == 1 and "error[B631]" in result.stderr
    assert (tmp_path / "mine" / "photo.jpg").exists()


def test_unknown_pass(tmp_path):
    message = fails(tmp_path, "P301", "--passes", "canonicalize,discover-input")
    assert "discover-inputs" in message and "^^^" in message


def test_unknown_option(tmp_path):
    message = fails(tmp_path, "P302", "--passes", "default{bitz=4}")
    assert "bits" in message


def test_pipeline_that_does_not_reach_mnn(tmp_path):
    fails(tmp_path, "U905", "--passes", "canonicalize,discover-inputs,assign-precision", says="legalize-mnn")


def test_unmet_requirement(tmp_path):
    fails(tmp_path, "P320", "--passes", "canonicalize,insert-qdq", says="assign-precision")


def test_unknown_target(tmp_path):
    fails(tmp_path, "B600", "--target", "3.6.2", says="3.6.")


def test_missing_text(tmp_path):
    fails(tmp_path, "U903", "--text", tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("option", "others"),
    [
        ("--text", ()),
        ("--kl-bar", ()),
        ("--calibration", ("--passes", "int8")),
        ("--calibration", ("--passes", "default{plan=PLAN}")),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(tmp_path, option, others):
    plan = tmp_path / "plan.toml"
    plan.write_text('[[rule]]\nrole = "layer"\nbits = 5\n')
    given = 1 if option == "--kl-bar" else EXAMPLE / "evaluation.txt"
    others = [item.replace("PLAN", f'"{plan}"') for item in others]
    fails(tmp_path, "U918", EXAMPLE, option, given, *others, says=option)


def test_print_pipeline_shows_what_a_limit_makes_of_it():
    text = run("--print-pipeline", "--budget", "4bpw").stdout
    assert "calibrate,assign-precision{budget=4bpw}" in text
    assert "budget" not in run("--print-pipeline").stdout


def test_a_saved_plan_is_taken_up_again_with_the_same_weights(tmp_path):
    text = EXAMPLE / "calibration.txt"
    plan, first, again = tmp_path / "plan.toml", tmp_path / "first", tmp_path / "again"
    same = ("--verify", "none", "--calibration", text)
    made = run(EXAMPLE, "--passes", "calibrated", "--save-plan", plan, "-o", first, *same)
    assert made.exit_code == 0, made.output
    taken = run(EXAMPLE, "--passes", f'default{{plan="{plan}"}}', "-o", again, *same)
    assert taken.exit_code == 0, taken.output
    assert (first / "llm.mnn.weight").read_bytes() == (again / "llm.mnn.weight").read_bytes()


def test_narrower_weights_make_a_smaller_folder(tmp_path):
    sizes = []
    for bits in (3, 4, 6, 8):
        out = tmp_path / str(bits)
        made = run(EXAMPLE, "--passes", f"default{{bits={bits} logits-bits={bits}}}", "--verify", "none", "-o", out)
        assert made.exit_code == 0, made.output
        assert ("note[Q464]" in made.stdout) == (bits in (3, 6))
        sizes.append((out / "llm.mnn.weight").stat().st_size)
    assert sizes == sorted(set(sizes))


def test_wrong_option_of_the_command_is_a_usage_error():
    result = run("--verfy", "none")
    assert result.exit_code == 2 and "--verify" in result.stderr


def test_quality_below_the_bar_fails_and_leaves_nothing(tmp_path):
    result = run("-o", tmp_path / "out", "--passes", "default{bits=2}", "--kl-bar", "0.001")
    assert result.exit_code == 1 and "error[V701]" in result.stderr and not (tmp_path / "out").exists()
    table, _, errors = result.stderr.partition("error[V701]")
    assert "float model" in table and "weights farthest off" in table
    assert "v_proj.weight" in table and "2 bits, blocks of 64" in table
    assert f"lading compile {EXAMPLE} -o {tmp_path / 'out'} --passes int8 --text" in errors
    shown = json.loads(run("-o", tmp_path / "out", "--passes", "default{bits=2}", "--kl-bar", "0.001", "--json").stdout)
    assert [item["code"] for item in shown["errors"] if item["severity"] == "error"] == ["V701", "V701"]
    assert shown["measurements"][1]["against"] == "float model" and "--passes int8" in shown["try"]
    assert len(shown["worst_weights"]) == 6 and shown["worst_weights"][0]["error"] > 0.3


def test_interrupt_leaves_nothing(tmp_path):
    """Stop the command while it runs."""
    import signal
    import time

    source = make_checkpoint(
        tmp_path / "source", "qwen2", hidden_size=512, intermediate_size=2048, num_hidden_layers=12
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.compile", str(source), "-o", str(tmp_path / "out"), "--verify", "full"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts tests in the background has them ignore interrupts, and children would do so too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # Python ends itself by the signal, which shells report as 130 too, when it interrupted code made from text.
    assert process.returncode in (130, -signal.SIGINT) and errors == "interrupted; nothing was written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_everything_runs_without_network_and_leaves_the_source_alone(tmp_path):
    source = tmp_path / "copy"
    shutil.copytree(EXAMPLE, source)
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    result = subprocess.run(
        [sys.executable, "-m", "tools.compile", str(source), "-o", str(tmp_path / "out"), "--verify", "none"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}


def test_compiling_needs_neither_torch_nor_transformers(tmp_path):
    code = (
        "import sys\nfrom tools.compile.job import *\n"
        f"compile_model(Request(str(EXAMPLE), __import__('pathlib').Path({str(tmp_path / 'out')!r}), verify='none'))\n"
        "print([name for name in ('torch', 'transformers', 'onnxruntime', 'MNN') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
