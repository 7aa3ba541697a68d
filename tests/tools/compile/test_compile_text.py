"""Texts that a compilation looks at: how they were read is said, and chats are never taken for plain text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import ROOT
from tools.compile.job import Request, compile_model

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"
CHATS = [{"instruction": f"Count to {number}.", "input": "", "output": "one two three " * 30} for number in range(12)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("text") / "model", "qwen2")


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_how_the_calibration_text_was_read(tmp_path: Path, model: Path) -> None:
    path = written(tmp_path, "alpaca.json", json.dumps(CHATS))
    result = compile_model(Request(str(model), tmp_path / "out", "calibrated", verify="none", calibration=path))
    assert dict(result.lines)["calibrated"] == f"on 12 chats of {path}"
    (warning,) = [item for item in result.warnings if item.code == "Q433"]
    assert warning.severity == "warning" and "8192 and 2048 were asked for" in warning.hint


def test_the_text_of_verification_may_hold_chats(tmp_path: Path) -> None:
    """The same turns as rows and as the text that the template makes of them give the same perplexity."""
    chats = written(tmp_path, "alpaca.json", json.dumps(CHATS))
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    plain = written(tmp_path, "t.txt", "\n\n".join(turn.format(row["instruction"], row["output"]) for row in CHATS))
    found = []
    for number, path in enumerate((chats, plain)):
        result = compile_model(Request(str(EXAMPLE), tmp_path / f"out{number}", text=path))
        found.append([item.perplexity for item in result.contract.verified if item.perplexity is not None])
    assert found[0] and found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.txt", b"", "Q481"),
        ("blank.jsonl", b"\n \n", "Q481"),
        ("model.bin", b"\0\1\2\3" * 99, "Q481"),
        ("latin.txt", "Größe".encode("latin-1"), "Q432"),
        ("rows.json", b'[{"src": "a"}]', "Q432"),
    ],
)
def test_texts_that_are_none_are_refused_before_work_starts(
    name: str, content: bytes, code: str, tmp_path: Path, model: Path
) -> None:
    with pytest.raises(LadingError) as error:
        compile_model(Request(str(model / "not looked at"), tmp_path / "out", text=written(tmp_path, name, content)))
    assert error.value.code == code and name in str(error.value)
