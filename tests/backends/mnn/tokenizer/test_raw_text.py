"""The summary says how text outside chats is encoded otherwise, and how often on the release that ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from backends.mnn.tokenizer.write_files import SAMPLES
from tests.support import tokenizer_data as data
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import interpreters, run_actions
from tools.compile.job import Request, compile_model

BOS = "{{ bos_token }}"
TEMPLATE = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"


def checkpoint(folder: Path, kind: str, template: str, bos: bool) -> Path:
    make_checkpoint(folder, "llama", vocab_size=1600, bos_token_id=1)
    content = json.loads(data.tokenizer_text(kind))
    content["post_processor"] = data.bos_processor("<s>", 1) if bos else None
    return data.write_folder(folder, json.dumps(content), template, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("kind", "template", "bos", "told"),
    [
        ("sp-first", BOS + TEMPLATE, True,
         ["raw text gets no BOS, because the chat template writes it",
          "text that does not follow an added token gets no leading space, as in chats"]),
        ("sp-first", "<s>" + TEMPLATE, False,
         ["text that does not follow an added token gets no leading space, as in chats"]),
        ("sp-legacy", BOS + TEMPLATE, True, ["raw text gets no BOS, because the chat template writes it"]),
        ("sp-legacy", TEMPLATE, True, []),
    ],
)  # fmt: skip
def test_raw_text_is_told_and_counted(tmp_path, kind, template, bos, told):
    source = checkpoint(tmp_path / "model", kind, template, bos)
    result = compile_model(Request(str(source), tmp_path / "out", "fp16"))
    first, _, *raw = dict(result.lines)["tokenizer"].splitlines()
    version = list(interpreters())[-1]
    (encoded,) = run_actions(tmp_path / "out", version, [{"do": "encode", "texts": SAMPLES}])
    wanted = [item.ids for item in Tokenizer.from_file(str(source / "tokenizer.json")).encode_batch(list(SAMPLES))]
    differing = sum(ids != other for ids, other in zip(encoded["ids"], wanted, strict=True))
    assert raw == [f"{reason} ({differing} of {len(SAMPLES)} test strings)" for reason in told]
    assert first.endswith("exact but for raw text") == bool(told) == bool(differing)


def test_without_a_run_nothing_is_counted(tmp_path):
    source = checkpoint(tmp_path / "model", "sp-first", BOS + TEMPLATE, True)
    result = compile_model(Request(str(source), tmp_path / "out", "int8", verify="none"))
    first, second, *raw = dict(result.lines)["tokenizer"].splitlines()
    assert first.endswith("exact but for raw text") and second.endswith("approximate")
    assert raw[0] == "raw text gets no BOS, because the chat template writes it"


def test_a_string_that_gets_other_ids_is_shown(tmp_path):
    source = make_checkpoint(tmp_path / "model", "llama", vocab_size=1600)
    data.write_folder(source, data.tokenizer_text("wordpiece"), unk_token="[UNK]")
    text = tmp_path / "text.txt"
    text.write_text("plain words\nनमस्ते दुनिया\nयह हिन्दी में एक परीक्षण वाक्य है।\n", encoding="utf-8")
    result = compile_model(Request(str(source), tmp_path / "out", "fp16", text=text))
    (told,) = [item for item in result.warnings if item.code == "B790"]
    version = list(interpreters())[-1]
    assert told.message.startswith(f"MNN {version} gives other ids for 2 of {len(SAMPLES) + 3} test strings")
    assert "'नमस्ते दुनिया'" in told.message and "spacing marks" in told.hint
