"""The command run: prompts of every kind, what is told of a crash, and a conversation on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from backends.mnn.run.native import run_model
from backends.mnn.target.environments import interpreters
from ir.base.diag import LadingError
from tests.support.paths import EXAMPLE, ROOT
from tests.support.runs import compiled
from tests.support.suite.code_record import expect_code
from tools.run.command import main
from tools.run.prompts import prompt_of, prompts_of
from tools.run.subject import find
from tools.run.terminal import Stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return compiled(EXAMPLE, tmp_path_factory.mktemp("run") / "model", "default")


def run(*arguments, input=None):
    return CliRunner().invoke(main, [str(item) for item in arguments], input=input)


# ---- answers ----------------------------------------------------------------------------------------------------


def test_the_text_of_a_prompt_is_that_of_the_greedy_tokens(folder):
    result = run(folder, "--greedy", "--prompt", "import os", "--max-tokens", 16, "--json")
    data = json.loads(result.stdout)["answers"][0]
    shown = run(folder, "--greedy", "--prompt", "import os", "--max-tokens", 16)
    subject = find(folder, None)
    decode = run_model(subject.config, [{"do": "decode", "ids": [data["ids"]]}], interpreter=subject.interpreter)
    text = decode.require().results[0]["texts"][0].decode()
    assert data["answer"] == text == shown.stdout.removesuffix("\n" if not text.endswith("\n") else "")
    assert data["ended_by"] == "limit" and len(data["ids"]) == 16
    assert "16 generated at" in shown.stderr and "tokens read at" in shown.stderr


def test_standard_input_that_is_no_terminal_is_the_prompt(folder):
    piped = run(folder, "--greedy", "--max-tokens", 8, input="import os\n")
    assert piped.stdout == run(folder, "--greedy", "--max-tokens", 8, "--prompt", "import os").stdout
    expect_code(run(folder, input="").output, "U992")


def test_a_file_of_prompts_and_chats_is_answered_line_by_line(folder, tmp_path):
    chats = tmp_path / "chats.jsonl"
    answered = {"messages": [{"role": "user", "content": "import os"}, {"role": "assistant", "content": "cut off"}]}
    chats.write_text('"import os"\n\n{"prompt": "import os"}\n' + json.dumps(answered) + "\n", encoding="utf-8-sig")
    data = json.loads(run(folder, "--file", chats, "--greedy", "--max-tokens", 6, "--json").stdout)
    assert len(data["answers"]) == 3
    assert len({item["answer"] for item in data["answers"]}) == 1
    shown = run(folder, "--file", chats, "--greedy", "--max-tokens", 6).stdout
    assert shown.count("> import os\n") == 3


@pytest.mark.skipif("3.4.0" not in interpreters(), reason="no environment of MNN 3.4.0: python -m tools.releases")
def test_an_older_release_answers_with_its_own_configuration(folder):
    data = json.loads(run(folder, "--release", "3.4.0", "--prompt", "x", "--max-tokens", 2, "--json").stdout)
    assert data["release"] == "3.4.0"
    assert find(folder, "3.4.0").config.name == "config.3.4.json"


def test_without_a_template_texts_are_continued(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare")
    settings = json.loads((bare / "llm_config.json").read_text())
    del settings["jinja"]
    (bare / "llm_config.json").write_text(json.dumps(settings))
    options = ("--greedy", "--max-tokens", 8, "--prompt", "import ")
    result = run(bare, *options)
    assert "no chat template" in result.stderr
    assert result.stdout == run(folder, "--raw", *options).stdout != run(folder, *options).stdout


# ---- what cannot be run -----------------------------------------------------------------------------------------


def test_what_is_no_model_directory_is_recognised(folder, tmp_path):
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "model.onnx").write_bytes(b"")
    for path, word in (
        (EXAMPLE, "lading compile"),
        (folder.parent, "model directories in it: model"),
        (tmp_path / "none", "no such folder"),
        (tmp_path / "graph", "an ONNX model"),
        (EXAMPLE / "evaluation.txt", "a file"),
    ):
        result = run(path, "--prompt", "x")
        assert result.exit_code == 1
        expect_code(result.output, "U990")
        assert word in result.output
    assert find(folder / "llm.mnn", None).folder == folder == find(folder / "config.json", None).folder


def test_a_release_that_is_not_there_is_told_with_the_way_to_it(folder):
    result = run(folder, "--release", "3.3.0", "--prompt", "x")
    expect_code(result.output, "U991")
    assert "lading releases 3.3.0" in result.output


def test_a_crash_is_told_with_what_the_doctor_says(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "llm.mnn").write_bytes((broken / "llm.mnn").read_bytes()[:3000])
    result = run(broken, "--prompt", "x")
    assert result.exit_code == 1
    expect_code(result.output, "B755")
    assert "error[B710]" in result.output.split("error[B755]")[1]


def test_a_broken_model_that_runs_is_called_broken_before_it_answers(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    with (broken / "llm.mnn.weight").open("r+b") as file:
        file.truncate(2_000_000)
    result = run(broken, "--prompt", "x", "--max-tokens", 4)
    assert "may be garbage" in result.stderr and "error[B730]" in result.stderr


def test_a_conversation_longer_than_the_model_is_refused(folder):
    expect_code(run(folder, "--prompt", "import os\n" * 1500).output, "U994")


@pytest.mark.parametrize("text", ["", "  \n", "a\0b", "a\ud800"])
def test_texts_that_no_model_can_be_fed_are_refused(text):
    with pytest.raises(LadingError) as error:
        prompt_of(text)
    assert error.value.code == "U992"


@pytest.mark.parametrize(
    "name, data",
    [
        ("p.jsonl", b'{"messages": []}\n'),
        ("p.jsonl", b'{"messages": [{"role": "user"}]}\n'),
        ("p.jsonl", b'{"messages": [{"role": "assistant", "content": "x"}]}\n'),
        ("p.jsonl", b"{\n"),
        ("p.jsonl", b"7\n"),
        ("p.txt", b"\xff"),
        ("p.txt", b"\n \n"),
        ("none/p.txt", None),
    ],
)
def test_files_without_prompts_are_refused_with_their_line(tmp_path, name, data):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(LadingError) as error:
        prompts_of(tmp_path / name)
    assert error.value.code == "U992" and name in error.value.diagnostics[0].where


# ---- what is shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Größe", "漢字かな", "a😀b", "\n"])
def test_characters_split_over_tokens_are_shown_whole(text):
    raw = text.encode()
    for cut in range(len(raw) + 1):
        out = io.StringIO()
        stream = Stream(out, terminal=True)
        for part in (raw[:cut], raw[cut:]):
            stream(part)
            assert "\ufffd" not in out.getvalue()
        stream.close()
        assert out.getvalue().rstrip("\n") == text.rstrip("\n")


def test_a_terminal_is_not_told_what_it_would_act_on():
    for terminal, shown in ((True, "a[2Jb\tc\n"), (False, "a\x1b[2Jb\tc\n")):
        out = io.StringIO()
        stream = Stream(out, terminal=terminal)
        stream(b"a\x1b[2Jb\tc")
        stream.close()
        assert out.getvalue() == shown


class Terminal:
    """A run on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tools.run", *arguments], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, env={**os.environ, "TERM": "dumb"},
            # However the shell started us: one that runs us in the background has interrupts ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def until(self, text: str, patience_s: float = 120) -> str:
        """What is shown up to a text that must come."""
        end = time.monotonic() + patience_s
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} did not come:\n{self.seen}"
            self.seen += os.read(self.master, 4096).decode("utf-8", "replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)


def test_a_conversation_is_stopped_cleared_and_left(folder):
    terminal = Terminal(str(folder), "--greedy", "--max-tokens", "2000")
    try:
        terminal.until("loaded in")
        terminal.until("> ")
        terminal.type("import os\n")
        terminal.until("import os\r\n")
        terminal.until("import")
        terminal.interrupt()
        terminal.until("stopped")
        terminal.until("> ")
        terminal.type("/clear\n")
        terminal.until("> ")
        terminal.type("/exit\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
