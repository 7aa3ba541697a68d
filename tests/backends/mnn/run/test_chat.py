"""Answers of a model in a child process: what is streamed, how the child may end, and how it begins again."""

from __future__ import annotations

import json
import sys

import pytest

from backends.mnn.run.chat import TAILS, ChatModel, Frames, Streamed
from backends.mnn.run.native import run_model
from backends.mnn.write.configs import config_for
from ir.base.diag import LadingError
from tests.support.paths import EXAMPLE
from tests.support.runs import compiled, each_release, interpreters

ASKED = [{"role": "system", "content": "Schreib Python."}, {"role": "user", "content": "import os"}]
GREEDY = {"sampler_type": "greedy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return compiled(EXAMPLE, tmp_path_factory.mktemp("chat") / "model", "default")


def chat(folder, version, **options):
    return ChatModel(config_for(folder, version), interpreters()[version], overrides=GREEDY, **options)


@pytest.mark.parametrize("version", each_release())
def test_what_is_streamed_is_what_the_runner_decodes(folder, version):
    interpreter, config = interpreters()[version], config_for(folder, version)
    options = {"overrides": GREEDY, "interpreter": interpreter}
    rendered = run_model(config, [{"do": "chat_template", "chats": [ASKED]}], **options).require().results[0]["prompts"]
    prompt = run_model(config, [{"do": "encode", "texts": rendered}], **options).require().results[0]["ids"][0]
    generated = run_model(config, [{"do": "generate", "prompt": prompt, "tokens": 24}], **options).require().results[0]
    ids = generated["ids"]
    decoded = run_model(config, [{"do": "decode", "ids": [ids]}], **options).require().results[0]["texts"][0]
    pieces: list[bytes] = []
    with chat(folder, version) as model:
        answer = model.answer(ASKED, tokens=24, show=pieces.append)
        again = model.answer(ASKED, tokens=24)
    assert answer.ids == tuple(ids) == again.ids
    assert b"".join(pieces) == decoded == answer.raw
    assert len(pieces) > 5
    assert answer.clean and answer.prompt_tokens == len(prompt)
    assert answer.prefill_rate > 0 and answer.decode_rate > 0


def newest() -> str:
    return list(interpreters())[-1]


def test_a_text_is_continued_as_it_is_and_a_turn_too_long_is_refused(folder):
    with chat(folder, newest()) as model:
        assert model.answer("import os\nimport ", tokens=2).prompt_tokens < 8
        with pytest.raises(LadingError) as error:
            model.answer(ASKED, tokens=8, limit=10)
        assert error.value.code == "U994"
        assert len(model.answer(ASKED, tokens=50, limit=40).ids) + model.answer(ASKED, tokens=1).prompt_tokens <= 40


def test_an_error_of_the_binding_and_an_empty_prompt_have_a_code_and_the_child_lives_on(folder):
    with chat(folder, newest()) as model:
        for turn in ("", []):
            with pytest.raises(LadingError) as error:
                model.answer(turn, tokens=4)
            assert error.value.code == "B757"
        assert model.answer("import", tokens=1).ids


def test_an_interrupted_answer_leaves_what_came_and_the_next_one_starts_anew(folder):
    def stop(data: bytes) -> None:
        raise KeyboardInterrupt

    with chat(folder, newest()) as model:
        with pytest.raises(KeyboardInterrupt):
            model.answer(ASKED, tokens=200, show=stop)
        assert model.shown
        assert model.answer(ASKED, tokens=4).raw.startswith(model.shown[:1])


def test_a_crash_is_told_with_the_end_of_the_log(folder, tmp_path):
    with pytest.raises(LadingError) as error:
        ChatModel(tmp_path / "config.json", sys.executable).start()
    assert error.value.code == "B755"
    assert error.value.diagnostics[0].where


def stub(tmp_path, text: str):
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_child_that_says_nothing_is_stopped(tmp_path):
    with pytest.raises(LadingError) as error:
        ChatModel(tmp_path / "config.json", stub(tmp_path, "exec sleep 600"), timeout_s=0.2).start()
    assert error.value.code == "B756"


def test_an_interpreter_that_is_not_there_has_a_code(tmp_path):
    with pytest.raises(LadingError) as error:
        ChatModel(tmp_path / "config.json", tmp_path / "python").start()
    assert error.value.code == "B666"


# ---- what comes out of the child --------------------------------------------------------------------------------


def test_events_are_told_from_what_is_printed_wherever_it_is_cut():
    mark = "ab12"
    whole = b"x\0" + b"\0ab12" + json.dumps({"event": "loaded"}).encode() + b"\ny\0ab\0ab12{}\n\0"
    for cut in range(len(whole) + 1):
        frames = Frames(mark)
        found = [*frames.feed(whole[:cut]), *frames.feed(whole[cut:])]
        printed = b"".join(item for item in found if isinstance(item, bytes))
        assert [item for item in found if isinstance(item, dict)] == [{"event": "loaded"}, {}]
        assert printed == b"x\0y\0ab"


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("text", ["", "a\n", "\n[MNNLLM] resp", "Größe 漢字\n\n"])
def test_an_answer_is_shown_without_what_the_runtime_prints_around_it(tail, text):
    head, raw = "[MNNLLM] response: text=é, stream=1\n".encode(), text.encode()
    whole = head + raw + tail
    for cut in range(len(whole) + 1):
        shown: list[bytes] = []
        stream = Streamed(head, shown.append)
        stream.feed(whole[:cut])
        stream.feed(whole[cut:])
        assert stream.close(raw)
        assert b"".join(shown) == raw


def test_messages_among_the_answer_are_noticed():
    shown: list[bytes] = []
    stream = Streamed(b"", shown.append)
    stream.feed(b"one Can't run operator\n two")
    assert not stream.close(b"one two")
