"""Strange tokenizers where they are really worked on: in children, with the tokenizers library and by the writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.fuzz.inputs.mutate import damage_json, json_bytes
from tools.fuzz.inputs.mutate_tokenizer import strange_tokenizer
from tools.fuzz.inputs.sample_tokenizers import tokenizer
from tools.fuzz.inputs.samples import checkpoint, copy_of
from tools.fuzz.target import Case, Target, require

_TEXTS = ("Hello, wörld! 漢字 123\n", "", "\x00", "a" * 2000, " \u200b\ud7ff ", "<|x|><t1>")


def _tokenizer(case: Case) -> Path:
    folder = copy_of(checkpoint(case.samples, case.rng), case.folder)
    data = strange_tokenizer(case.rng, tokenizer(case.rng, folder))
    if case.rng.random() < 0.2:
        data = damage_json(case.rng, data, 1)
    raw = json_bytes(case.rng, data) if case.rng.random() < 0.1 else json.dumps(data).encode()
    (folder / "tokenizer.json").write_bytes(raw)
    if case.rng.random() < 0.3:
        _more(case, folder)
    return folder


def _more(case: Case, folder: Path) -> None:
    """Added tokens in the places where older checkpoints have them."""
    extra: dict[str, Any] = {"added_tokens": []}
    strange_tokenizer(case.rng, extra)
    named = {item["content"]: item["id"] for item in extra["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(named))
    special = {"eos_token": next(iter(named), "x"), "additional_special_tokens": list(named)[:5]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def _work(folder: Path, case: Case) -> None:
    from backends.mnn.tokenizer.write_files import TokenizerJob, TokenizerRequest
    from frontends.text.tokenizer import open_tokenizer, prefix_of
    from ir.base.diag import LadingError

    out = case.folder / "out"
    out.mkdir()
    request = TokenizerRequest(str(folder), str(out), "tokenizer.mtok", "3.5.0", "tokenizer.txt", compare=True)
    try:
        with TokenizerJob(request) as job:
            files = job.result()
        require((out / files.exact).is_file(), "the exact form was not written")
    except LadingError:
        pass
    opened = open_tokenizer(folder)
    prefix_of(opened)
    for text in case.rng.sample(_TEXTS, 3):
        ids = opened.encode(text).ids
        opened.decode([*ids, 2**31 - 1, 0])


TOKENIZER_CHILDREN = (
    Target("tokenizer-child", "strange tokenizers, worked on in child processes", _tokenizer, _work, seconds=200),
)
