"""``lading explain``: codes, and what runtimes print or do, lead to cause and command."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
from click.testing import CliRunner

from ir.base.codes import AREAS
from ir.base.diag import known_codes
from tests.support.paths import ROOT
from tools.explain import symptoms
from tools.main import main


def explain(*words: str, text: str | None = None):
    return CliRunner().invoke(main, ["explain", *words], input=text)


def first_command(output: str) -> str:
    """The first command that is named."""
    return next(line.strip() for line in output.splitlines() if line.startswith("    lading "))


def test_a_code_is_explained_with_cause_example_and_remedy():
    lines = explain("f503").output.splitlines()
    assert lines[0].startswith("F503: The folder has weights but no config.json")
    assert lines.index("Example") < lines.index("What to do")
    assert any(line.startswith("    error[F503]: ") for line in lines)
    assert max(len(line) for line in lines if not line.startswith("    ")) <= 80


def test_codes_of_plugins_are_known_to_a_fresh_process():
    result = subprocess.run(
        [sys.executable, "-m", "lading", "explain", "B712", "C820"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and "B712: " in result.stdout and "\nC820: " in result.stdout, result.stderr


@pytest.mark.parametrize("code", sorted({min(code for code in known_codes() if code[0] == area) for area in AREAS}))
def test_every_area_has_explanations(code):
    data = json.loads(explain(code, "--json").output)
    (found,) = data["codes"]
    assert found["code"] == code and found["cause"] and found["remedy"] and code in found["example"]


def test_a_message_of_this_program_is_explained_by_its_code():
    text = "error[B630]: the output folder exists\n  at build/x\n  (lading explain B630)"
    assert explain(text).output.startswith("B630: ")


@pytest.mark.parametrize("text", ["F999", "Z100", "F50"])
def test_a_code_that_does_not_exist(text):
    result = explain(text)
    assert result.exit_code == 1 and "error[U900]: unknown code" in result.output


def test_a_text_that_nobody_knows():
    result = explain("it rained all day")
    assert result.exit_code == 1
    assert "error[U998]: 'it rained all day' is neither an error code nor a known message" in result.output
    assert "lading doctor MODEL" in result.output


MESSAGES = [
    ("113 tensor [ logits_index ] is input but not found", "logits_index is not fed"),
    ("11-27 E/MNNJNI (4711): 7 tensor [ logits_index ] is input but not found", "logits_index is not fed"),
    ("tensor [logits_index] is input\nbut not found", "logits_index is not fed"),
    ("tensor [ /rotary/inv_freq ] is input but not found", "an input is not fed"),
    ("7 tensor [ past_key_values.0.key ] is input but not found", "an input is not fed"),
    ("PipelineModule:: Can't find enough output from the model, finded is:", "an output is missing"),
    ("[17:02:11] :149: Check it out ==> row has empty input, the index is 1", "the converter loses a tensor"),
    ("[17:02:11] :220: These Op Not Support: ONNX::IsNaN | ONNX::Attention", "the converter refuses operators"),
    ("double free or corruption (out)\nAborted (core dumped)", "loading corrupts memory"),
    ("Abort message: 'Scudo ERROR: invalid chunk state when deallocating address 0x7'", "loading corrupts memory"),
    ("PipelineModule:: Can't find output logits from the model:", "an output is missing"),
    ("Invalidate buffer to create MNN Module", "the file is refused"),
    ("Don't support type [LinearAttention]", "an operator is not there"),
    ("Can't compute size for 306, name=/layers.0/RoPE", "a size cannot be computed"),
    ("Compute Shape Error for /layers.0/self_attn/Reshape", "a size cannot be computed"),
    ("ReadQuanData_c return weightLength is 0, maybe the weight data is invalid", "weights are damaged"),
    ("Create execution error : 305", "an operator cannot be created"),
    ("Create execution error", "an operator cannot be created"),
    ("Alloc memory error for extract idst int8", "there is not enough memory"),
    ("Open file error", "a file is missing"),
    ("Open /data/local/tmp/llm.mnn.weight error", "a file is missing"),
    ("[Error]: LLM weight file not found: /sdcard/m/llm.mnn.weight", "a file is missing"),
    ("Unable to open llm_config file: llm_config.json", "a file is missing"),
    ("Failed to open embedding file!", "a file is missing"),
    ("[Error]: Failed to load tokenizer from: tokenizer.mtok", "the tokenizer does not load"),
    ("!!!!!!!!!!!!!!", "garbage"),
    ("the the the the the the the the the the", "garbage"),
    ("it writes gibberish", "garbage"),
    ("the first token is wrong", "the first token is wrong"),
    ("it never stops generating", "it does not stop"),
    ("Can't Find type=3 backend, use 0 instead", "a GPU cannot be used"),
    ("[Error]: Load module failed, please check model.", "a step failed"),
    ("Segmentation fault (core dumped)", "a crash"),
    ("Fatal signal 11 (SIGSEGV), code 1 (SEGV_MAPERR), fault addr 0x0 in tid 7 (app)", "a crash"),
    ("#01 pc 0000000000123456  /data/app/lib/arm64/libMNN_Express.so", "a crash"),
]


@pytest.mark.mnn
@pytest.mark.parametrize(("text", "name"), MESSAGES)
def test_what_a_runtime_prints_is_recognised(text, name):
    data = json.loads(explain(text, "--json").output)
    assert [item["name"] for item in data["symptoms"]] == [name]
    (found,) = data["symptoms"]
    assert found["causes"] and found["do"][0]["command"].startswith("lading ")


@pytest.mark.mnn
def test_every_row_is_recognised_by_a_message():
    assert {name for _, name in MESSAGES} == {item.name for item in symptoms()}


@pytest.mark.mnn
def test_of_a_log_the_telling_lines_count():
    log = "load model\n113 tensor [ logits_index ] is input but not found\nCreate module error\nSegmentation fault\n"
    for result in (explain(log), explain("-", text=log)):
        assert result.exit_code == 0
        assert result.output.startswith("The model waits for the input 'logits_index'")
        assert "MNN reports a failed load" not in result.output


@pytest.mark.mnn
def test_a_log_file_is_read(tmp_path):
    (tmp_path / "app.log").write_bytes(b"\xff\xfe boot\n" * 1000 + b"Create execution error : 305\n")
    assert explain(str(tmp_path / "app.log")).output == explain("Create execution error : 305").output


@pytest.mark.mnn
def test_a_long_line_is_no_file_name():
    assert explain("I/MNNJNI: " + "x" * 5000 + " Create execution error : 305\0").exit_code == 0


@pytest.mark.mnn
def test_the_model_is_named_in_the_commands(tmp_path):
    output = explain("Segmentation fault", "--model", str(tmp_path / "my model")).output
    assert shlex.split(first_command(output))[:3] == ["lading", "repair", str(tmp_path / "my model")]
    assert "MODEL" not in output


ORIGINS = {
    "model": (
        "lading repair {0} -o OUT --target 3.0.0", "lading repair {0} -o OUT", "lading doctor {0}",
    ),
    "model.onnx": ("lading compile {0} -o OUT", "lading doctor {0}"),
    "checkpoint": ("lading compile {0} -o OUT",),
}  # fmt: skip
"""What the message of the crash leads to, by what the model is."""


@pytest.mark.mnn
@pytest.mark.parametrize("name", ORIGINS)
def test_the_message_of_the_crash_leads_to_the_command_for_what_there_is(name, tmp_path):
    path = tmp_path / name
    if name == "checkpoint":
        path.mkdir()
        (path / "model.safetensors").touch()
    data = json.loads(explain("tensor [ logits_index ] is input but not found", "--model", str(path), "--json").output)
    (found,) = data["symptoms"]
    assert [item["command"] for item in found["do"]] == [line.format(path) for line in ORIGINS[name]]


@pytest.mark.mnn
def test_without_a_model_there_is_a_command_for_each_origin():
    data = json.loads(explain("tensor [ logits_index ] is input but not found", "--json").output)
    lines = " ".join(item["command"] for item in data["symptoms"][0]["do"])
    for part in ("repair MODEL", "compile FILE.onnx", "compile CHECKPOINT", "doctor MODEL"):
        assert part in lines


@pytest.mark.mnn
def test_groups_and_codes_of_every_row_are_sound():
    known = known_codes()
    for item in symptoms():
        names = {name for pattern in item.says for name in re.compile(pattern).groupindex}
        texts = (item.happens, *item.causes, *item.advice)
        used = {name for text in texts for name in re.findall(r"\{(\w+)\}", text)}
        assert used <= names, item.name
        assert set(item.codes) <= set(known), item.name


@pytest.mark.mnn
def test_every_command_of_every_row_is_one_of_the_command_line():
    from click import Context

    for item in symptoms():
        for line, effect in item.do:
            words = shlex.split(line)
            command = main.get_command(Context(main), words[1])
            with command.make_context(
                words[1], [word.replace("MODEL", ".") for word in words[2:]], resilient_parsing=True
            ):
                assert words[0] == "lading" and effect


@pytest.mark.mnn
@pytest.mark.parametrize(
    ("message", "release"),
    [("tensor [ logits_index ] is input but not found", "3.0.0"), ("Create execution error : 7", "3.4.0")],
)
def test_two_commands_lead_from_the_message_to_a_folder_that_is_healthy(message, release, tmp_path):
    """`lading explain MESSAGE`, then the command that it names first."""
    from backends.mnn.doctor.examine import examine
    from backends.mnn.target.releases import PROFILES

    source = ROOT / "tests" / "data" / "official-default-int8"
    assert not examine(source, [PROFILES[release]]).healthy
    line = first_command(explain(message, "--model", str(source)).output)
    words = [word.replace("OUT", str(tmp_path / "out")) for word in shlex.split(line)]
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code in (0, 4), result.output
    assert examine(tmp_path / "out", [PROFILES[release]]).healthy
