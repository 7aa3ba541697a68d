"""Tokenizers are worked on in child processes; what kills, stops or fattens one ends as a coded error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from backends.mnn.tokenizer.write_files import TokenizerJob, TokenizerRequest
from frontends.text import tokenizer_child
from frontends.text.tokenizer import open_tokenizer, prefix_of
from frontends.text.tokenizer_child import TokenizerWork
from ir.base.diag import LadingError
from tests.support.paths import ROOT

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The example's tokenizer and what is read with it; no weights."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("*.txt", "*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 10}))
    return folder


def change(folder: Path, edit) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    edit(data)
    path.write_text(json.dumps(data))


def add_token(folder: Path, **values) -> None:
    token = {
        "id": 300,
        "content": "x",
        **dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False),
    }
    change(folder, lambda data: data["added_tokens"].append({**token, **values}))


def write(folder: Path, out: Path) -> str:
    """Code of the error that writing the tokenizer ends with; empty when it is written."""
    out.mkdir()
    request = TokenizerRequest(str(folder), str(out), "tokenizer.mtok", "3.5.0", "tokenizer.txt", compare=True)
    try:
        with TokenizerJob(request) as job:
            job.result()
    except LadingError as error:
        return error.code
    return ""


def test_the_original_is_used_as_the_library_uses_it(checkpoint):
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    opened = open_tokenizer(checkpoint)
    for text in ("def f(x):\n    return 1", "", "漢字 \x00", "<|im_end|>"):
        ids = plain.encode(text).ids
        assert opened.encode(text).ids == ids
        assert opened.encode_all([text, text])[1].ids == ids
        assert opened.decode(ids) == plain.decode(ids)
        assert opened.decode(ids, skip_special_tokens=False) == plain.decode(ids, skip_special_tokens=False)
    assert prefix_of(opened) == []


def test_a_file_that_changed_is_read_again(checkpoint):
    opened = open_tokenizer(checkpoint)
    assert len(opened.encode("@@new@@").ids) > 1
    add_token(checkpoint, id=2048, content="@@new@@")
    assert len(opened.encode("@@new@@").ids) == 1


def test_half_a_character_cannot_be_encoded(checkpoint):
    with pytest.raises(LadingError, match="F650"):
        open_tokenizer(checkpoint).encode("a\ud800")


@pytest.mark.parametrize("content, kind", [("a" * 70_000, {}), ("ab" * 35_000, {"normalized": True}),
                                           ("é" * 40_000, {"special": True})])  # fmt: skip
def test_a_token_of_70_kilobytes(checkpoint, tmp_path, content, kind):
    """Its parts once took 4.8 GB."""
    add_token(checkpoint, id=2048, content=content, **kind)
    assert write(checkpoint, tmp_path / "out") == "B649"


@pytest.mark.parametrize("number", [2**31, 2**31 + 5, 2**32 - 1, 2**32, 2**63, -1, 10**30])
def test_ids_that_no_model_has(checkpoint, tmp_path, number):
    add_token(checkpoint, id=number)
    assert write(checkpoint, tmp_path / "out") in ("", "Q435", "B647", "B649", "B653")
    change(checkpoint, lambda data: data["model"]["vocab"].update({"x@": number}))
    assert write(checkpoint, tmp_path / "again") in ("Q435", "B647", "B649", "B653", "B641")


def test_a_pattern_of_groups_within_groups(checkpoint, tmp_path):
    def edit(data):
        pattern = {"Regex": "(" * 3000 + "a" + ")" * 3000}
        data["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}

    change(checkpoint, edit)
    assert write(checkpoint, tmp_path / "out") == "B645"


# ---- what becomes of children ----

HERE = "tests.frontends.text.test_tokenizer_child"


def work_crash(request):
    os.abort()


def work_allocate(request):
    return {"data": len(bytearray(8 << 30))}


def work_stop(request):
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def work_fail(request):
    raise KeyError("unforeseen")


def work_panic(request):
    raise BaseException("called `Option::unwrap()` on a `None` value")


@pytest.mark.parametrize(
    "what, words",
    [("crash", "died of SIGABRT"), ("allocate", "needs more than 3,221 MB of memory"), ("stop", "was stopped")],
)
def test_a_child_that_dies_is_a_coded_error(checkpoint, monkeypatch, what, words):
    monkeypatch.setattr(tokenizer_child, "SECONDS", 8.0 if what == "stop" else 120.0)
    monkeypatch.setattr(tokenizer_child, "SECONDS_PER_BYTE", 0.0)
    with (
        TokenizerWork(f"{HERE}:work_{what}", {}, checkpoint) as work,
        pytest.raises(LadingError, match=words) as caught,
    ):
        work.result()
    assert caught.value.code == "F650" and str(checkpoint) in caught.value.diagnostics[0].where
    assert open_tokenizer(checkpoint).encode("a").ids


@pytest.mark.parametrize("what", ["fail", "panic"])
def test_what_nobody_foresaw_is_no_fault_of_the_input(checkpoint, what):
    with (
        TokenizerWork(f"{HERE}:work_{what}", {}, checkpoint) as work,
        pytest.raises(RuntimeError, match=r"unforeseen|unwrap"),
    ):
        work.result()


def test_a_child_ends_with_the_block_that_started_it(checkpoint):
    with pytest.raises(KeyError), TokenizerWork(f"{HERE}:work_stop", {}, checkpoint) as work:
        number = work._child.pid
        raise KeyError
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_one_child_serves_one_after_the_other_and_several_at_once(checkpoint):
    opened = open_tokenizer(checkpoint)
    (kept,) = tokenizer_child._waiting
    opened.encode("a")
    assert tokenizer_child._waiting == [kept]
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(opened.encode("def f").ids)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [opened.encode("def f").ids] * 3 and len(tokenizer_child._waiting) == 1


def test_an_answer_that_is_asked_for_late_is_there(checkpoint, monkeypatch):
    monkeypatch.setattr(tokenizer_child, "SECONDS", 3.0)
    monkeypatch.setattr(tokenizer_child, "SECONDS_PER_BYTE", 0.0)
    open_tokenizer(checkpoint)
    with TokenizerWork("frontends.text.tokenizer:work_check", {"folder": str(checkpoint)}, checkpoint) as work:
        time.sleep(3.5)
        assert work.result() == {}


def test_a_child_that_was_prepared_does_the_work_unless_it_died(checkpoint, monkeypatch):
    monkeypatch.setattr(tokenizer_child, "_waiting", [])
    tokenizer_child.prepare("backends.mnn.tokenizer.forms")
    (ready,) = tokenizer_child._waiting
    first = ready.pid
    assert open_tokenizer(checkpoint).encode("import os").ids
    (kept,) = tokenizer_child._waiting
    assert kept.pid == first
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert open_tokenizer(checkpoint).encode("import os").ids
    (other,) = tokenizer_child._waiting
    assert other.pid != first
    other.close()
