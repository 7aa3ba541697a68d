"""What commands do about errors that nobody foresaw."""

from __future__ import annotations

import errno
import json
import re
import tempfile

import pytest
from click.testing import CliRunner

from tools.main import main as lading
from tools.shared.cli import EXIT_FAULT, command


class Panic(BaseException):
    """As foreign libraries raise them."""


def failing(error):
    @command("failing")
    def run() -> int:
        secret = [1.5] * 3  # noqa: F841 - values of variables are not reported
        raise error

    return run


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), RecursionError("too deep"), Panic("called `unwrap()`"), ValueError("\ud800"), SyntaxError()],
)
def test_an_unforeseen_error_is_called_a_fault_and_reported(error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lading", "compile", "my model"])
    result = CliRunner().invoke(failing(error), [])
    assert result.exit_code == EXIT_FAULT == 3
    assert f"error[U980]: a fault of this program: {type(error).__name__}" in result.output
    assert "Traceback" not in result.output
    (path,) = tmp_path.iterdir()
    assert path.name in result.output
    text = path.read_text(encoding="utf-8")
    assert "lading compile 'my model'" in text and "Traceback" in text and "secret" not in text.replace("secret = ", "")
    assert re.search(r"^onnxruntime +\d", text, re.M) and re.search(r"^MNN +\d", text, re.M)


def test_a_long_message_is_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(failing(KeyError("w" * 1_000_000)), [])
    (path,) = tmp_path.iterdir()
    assert len(result.output) < 2000 and path.stat().st_size < 10_000


def test_the_report_goes_to_the_temporary_folder_where_the_working_folder_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("tools.shared.last_resort._folder", lambda: "/proc")
    result = CliRunner().invoke(failing(KeyError("x")), [])
    (path,) = tmp_path.iterdir()
    assert str(path) in result.output


def test_an_error_is_told_where_no_report_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    monkeypatch.setattr("tools.shared.last_resort._folder", lambda: "/proc")
    result = CliRunner().invoke(failing(KeyError("x")), [])
    assert result.exit_code == EXIT_FAULT
    assert "U980" in result.output and "report" not in result.output


@pytest.mark.parametrize("number, hint", [(errno.ENOSPC, "free some space"), (errno.EMFILE, "ulimit"), (errno.EIO, "")])
def test_what_the_system_refuses_says_what_to_do(number, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(failing(OSError(number, "no", "/a/b")), [])
    assert result.exit_code == 1 and "error[U902]" in result.output and hint in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_home_of_nobody_is_a_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, code in (
        (["compile", "~nobody-of-this-name"], "F500"),
        (["opt", "~nobody-of-this-name/x.lading", "--passes", "dce"], "U910"),
        (["inspect", "~nobody-of-this-name/x.onnx"], "F600"),
        (["ladder", "~nobody-of-this-name/x"], "F500"),
    ):
        result = CliRunner().invoke(lading, words)
        assert (result.exit_code, f"error[{code}]" in result.output) == (1, True), result.output
    result = CliRunner().invoke(lading, ["compile", "~nobody-of-this-name", "--json"])
    assert json.loads(result.output)["errors"][0]["code"] == "F500"
    assert list(tmp_path.iterdir()) == []
