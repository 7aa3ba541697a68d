"""What the doctor tells people: a sentence, a line that can be pasted, each fix once; and what else a path may be."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.mnn.codes import CODES
from backends.mnn.doctor.causes import CAUSES
from backends.mnn.doctor.examine import examine
from backends.mnn.run import native
from backends.mnn.target.releases import target
from ir.base.codes import CODES as BASE_CODES
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import DATA, ROOT
from tools.doctor.command import main
from tools.doctor.recognise import model_of
from tools.doctor.words import span
from tools.main import main as lading


def run(*arguments: object):
    """The command in this process."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


def first_lines(*arguments: object) -> list[str]:
    return run(*arguments).stdout.splitlines()


def unread(tmp_path: Path) -> Path:
    """A model of which nothing reads one operator: a quotient with an activation."""
    folder = shutil.copytree(DATA / "exports" / "qwen3-moe-int4", tmp_path / "unread")
    net = json.loads(native.mnn_to_json(folder / "llm.mnn"))
    next(op for op in net["oplists"] if op["name"] == "/blocks.0/mlp/Div_output_0")["main"]["activationType"] = 1
    native.json_to_mnn(net, folder / "llm.mnn")
    return folder


# ---- the sentence and the command ----


def test_the_first_line_says_what_is_wrong_where_and_whether_it_can_be_mended():
    folder = DATA / "official-unfused-int4"
    assert first_lines(folder)[0] == (
        f"{folder} is healthy on MNN 3.6.0 to 3.6.1, broken on 3.4.0 to 3.5.0: its half-float scales would be read as "
        "garbage, and 2 more. This mends it:"
    )
    assert first_lines(folder, "--runtime", "3.6.1")[0] == f"{folder} is healthy on MNN 3.6.1."
    lone = first_lines(folder / "llm.mnn")[0]
    assert "its half-float scales" in lone and lone.endswith("The command repair takes the whole folder of a model.")


def test_what_cannot_be_mended_is_said_first(tmp_path):
    folder = shutil.copytree(DATA / "official-unfused-int4", tmp_path / "model")
    (folder / "llm.mnn.weight").write_bytes(bytes((folder / "llm.mnn.weight").stat().st_size))
    text = first_lines(folder)
    assert "is broken on MNN 3.4.0 to 3.6.1: the weight file is of another model, or damaged" in text[0]
    assert text[0].endswith("It cannot be mended: copy the files again, all from one export.")
    assert not any("lading repair" in line for line in text)
    refused = first_lines(unread(tmp_path))[0]
    assert "It cannot be mended: repair refuses it (F644): element-wise operators with an activation" in refused


@pytest.mark.parametrize("name", ["official-default-int8", "exports/hunyuan-int4"])
@pytest.mark.parametrize(
    ("runtime", "wanted"), [("portable", "portable"), (">=3.4,<3.6", ">=3.4.0,<=3.5.0"), ("3.0.0", "3.0.0")]
)
def test_the_command_works_when_it_is_pasted(name, runtime, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(DATA / name, tmp_path / "-it's my model")
    (tmp_path / "-it's my model-repaired").mkdir()
    found = run("--runtime", runtime, "--json", "--", folder.name)
    line = json.loads(found.stdout)["repair"]
    assert f"\n  {line}\n" in run("--runtime", runtime, "--", folder.name).stdout
    words = shlex.split(line)
    assert words[:2] == ["lading", "repair"] and words[-1] == wanted
    done = CliRunner().invoke(lading, [*words[1:], "--verify", "none"])
    assert done.exit_code == 0, done.output
    assert examine(tmp_path / "-it's my model-repaired-2", target(wanted).releases).healthy


def test_a_release_that_cannot_be_mended_is_left_out_of_the_command(tmp_path):
    """Blocks of a size that 3.4 and 3.5 compute wrong stay as they are."""
    folder = shutil.copytree(DATA / "official-unfused-int4", tmp_path / "model")
    (folder / "tokenizer.txt").write_text("{}")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.3.4.json").write_text(json.dumps({**config, "tokenizer_file": "tokenizer.txt"}))
    text = first_lines(folder)
    assert text[0].endswith("This mends it for 3.5.0 to 3.6.1:") and text[2].endswith("--target '>=3.5.0,<=3.6.1'")


def test_each_fix_is_told_once(tmp_path):
    text = run(unread(tmp_path)).stdout
    fixes = [line.strip() for line in text.splitlines() if line.strip().startswith("fix:")]
    assert fixes and len(fixes) == len(set(fixes))
    mended = run(DATA / "official-default-int8").stdout
    assert mended.count("lading repair") == 1 and "fix:" not in mended


def test_runs_of_releases():
    assert span(["3.6.1"]) == "3.6.1" and span(["3.4.0", "3.4.1", "3.6.0"]) == "3.4.0 to 3.4.1 and 3.6.0"


def test_every_code_of_an_error_has_a_few_words():
    assert set(CAUSES) <= set(CODES) | set(BASE_CODES)


# ---- what else a path may be ----


def told(path: Path) -> tuple[str, str, str]:
    """Code, message and hint."""
    with pytest.raises(LadingError) as caught:
        model_of(path)
    item = caught.value.diagnostics[0]
    return item.code, item.message, item.hint


def put(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def test_a_checkpoint(tmp_path):
    folder = make_checkpoint(tmp_path / "my model", "qwen2")
    wanted = f"lading compile '{folder}' -o 'build/my model'"
    assert told(folder) == ("U955", "this is a checkpoint (qwen2), not an MNN model", wanted)
    assert told(folder / "model.safetensors")[2] == wanted
    assert told(folder / "config.json")[2] == wanted
    result = run(folder)
    assert result.exit_code == 1 and "error[U955]" in result.stderr and wanted in result.stderr


FOLDERS = {
    "adapter": ({"adapter_config__json": "{}", "adapter_model__safetensors": "x"}, "U955", "an adapter"),
    "pickled": ({"config__json": "{}", "pytorch_model__bin": "x"}, "U955", "pickled weights"),
    "gguf": ({"model__gguf": b"GGUF"}, "U955", "a GGUF file"),
    "onnx": ({"model__onnx": "x", "config__json": "{}"}, "U955", "a folder with ONNX files"),
    "no-weights": ({"config__json": '{"model_type": "qwen2"}'}, "U955", "a checkpoint without its weights"),
    "tokenizer": ({"tokenizer__json": "{}"}, "U955", "a tokenizer without a model"),
    "empty": ({}, "U950", "the folder is empty"),
    "other": ({"a__txt": "x"}, "U950", "the folder holds no model: a.txt"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, tmp_path):
    files, code, words = FOLDERS[name]
    found = told(put(tmp_path / "folder", **files))
    assert found[0] == code and words in found[1] and (found[2] or name == "empty")


FILES = {
    "x__gguf": (b"GGUF\x03", "U955", "a GGUF file"),
    "x__bin": (b"\x80\x02", "U955", "pickled"),
    "x__zip": (b"PK\x05\x06" + bytes(18), "U955", "an archive"),
    "x__tflite": (b"x", "U955", "TensorFlow Lite"),
    "llm__mnn__txt": (b"version https://git-lfs.github.com/spec/v1\n", "U955", "a Git LFS pointer"),
    "x__txt": (b"hello", "U950", "neither a model directory"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path):
    data, code, words = FILES[name]
    folder = put(tmp_path / "folder", **{name: data})
    found = told(next(folder.iterdir()))
    assert found[0] == code and words in found[1]


def test_a_file_of_a_model_directory_stands_for_it():
    folder = DATA / "official-unfused-int4"
    for name in ("config.json", "llm_config.json", "llm.mnn.weight", "tokenizer.mtok"):
        assert model_of(folder / name) == folder
    assert model_of(folder / "llm.mnn") == folder / "llm.mnn"


def test_a_folder_around_a_model(tmp_path):
    shutil.copytree(DATA / "official-unfused-int4", tmp_path / "unpacked" / "model")
    assert told(tmp_path / "unpacked")[2] == f"lading doctor {tmp_path / 'unpacked' / 'model'}"


def test_a_repository_of_the_hub_cache(tmp_path):
    repository = tmp_path / "models--owner--name"
    make_checkpoint(repository / "snapshots" / "abc", "qwen2")
    code, message, hint = told(repository)
    assert code == "U955" and "Hugging Face cache" in message and hint.endswith("snapshots/abc")


def test_names_that_are_nowhere(tmp_path):
    assert told(Path("Qwen/Qwen3-0.6B"))[2].endswith("lading compile Qwen/Qwen3-0.6B")
    assert told(tmp_path / "absent")[:2] == ("B711", "there is no such file or folder")
    assert told(tmp_path / ("n" * 300))[0] == "B711"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert told(tmp_path / "pipe")[0] == "U950"
    assert told(Path("/dev/zero"))[0] == "U950"


def test_repair_recognises_too(tmp_path):
    from tools.repair.command import main as repair

    result = CliRunner().invoke(repair, [str(ROOT / "examples" / "tiny-qwen2.5"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1 and "error[U955]" in result.stderr and "lading compile" in result.stderr


# ---- files that a release does not read ----


def test_only_releases_that_read_a_file_are_broken_by_it(tmp_path):
    from tests.support.runs import compiled

    folder = compiled(make_checkpoint(tmp_path / "source", "qwen2"), tmp_path / "out", "int8")
    (folder / "tokenizer.txt").unlink()
    (folder / "config.3.4.json").write_text("{")
    (folder / "README.txt").write_text("mine")
    report = examine(folder, target("portable").releases)
    assert {release.version for release in report.releases if report.healthy_on(release.version)} == {
        "3.5.0",
        "3.6.0",
        "3.6.1",
    }
    assert {item.code for item in report.problems("3.4.0")} >= {"B723", "C810"}
    assert "C811" in {item.code for item in report.findings if item.severity == "warning"}
