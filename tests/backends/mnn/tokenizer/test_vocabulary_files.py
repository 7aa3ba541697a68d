"""Tokenizers without ``tokenizer.json`` on MNN: the ids of the original, whatever file they come in."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.mnn.tokenizer.forms import encode_mtok, encode_text, inexact
from backends.mnn.tokenizer.spec import TokenizerSpec, load_tokenizer
from frontends.text.tokenizer import load_in_process
from tests.support import tokenizer_data as data
from tests.support import tokenizer_run as run
from tests.support.checkpoints import make_checkpoint
from tests.support.text import vocabulary_files as files
from tools.compile.job import Request, compile_model

COUNT = 400
# Family -> the largest share of sample strings that may differ, and a part of the declared reason.
NEARLY = {
    "unigram": (0.02, "equally likely"),
    "nfkc": (0.06, "combining mark"),
    "tekken": (0.002, "beyond U+FFFF"),
    "kimi": (0.005, "beyond U+FFFF"),
    "bert": (0.10, "spacing marks"),
}
EXACT = sorted(set(files.FOLDERS) - set(NEARLY))


def _specs(root: Path, kinds: list[str]) -> dict[str, TokenizerSpec]:
    return {kind: load_tokenizer(files.FOLDERS[kind](root / kind)) for kind in kinds}


def _texts(spec: TokenizerSpec) -> list[str]:
    plain = [token.content for token in spec.added if not (token.single_word or token.lstrip or token.rstrip)]
    return data.sample_strings(COUNT, plain[:20])


def _wanted(spec: TokenizerSpec, texts: list[str]) -> list[list[int]]:
    original = load_in_process(Path(spec.folder))
    rows = original.encode_batch(texts, add_special_tokens=False)
    return [[*spec.encode_prefix_ids, *row.ids] for row in rows]


@pytest.mark.mnn
@pytest.mark.parametrize("release", ["3.5.0", "3.6.1"])
def test_ids_are_those_of_the_original(release: str, tmp_path: Path) -> None:
    python = run.interpreter_of(release)
    if python is None:
        pytest.skip(f"no environment of MNN {release}: make one with python -m tools.releases, or set LADING_MNN_ENVS")
    specs = _specs(tmp_path, [*EXACT, *NEARLY])
    texts = {kind: _texts(spec) for kind, spec in specs.items()}
    jobs = [run.Job(encode_mtok(spec), texts[kind]) for kind, spec in specs.items()]
    answers = run.run_mnn(python, tmp_path / "run", *jobs)
    for (kind, spec), answer in zip(specs.items(), answers, strict=True):
        wanted = _wanted(spec, texts[kind])
        wrong = [at for at, ids in enumerate(answer.ids) if ids != wanted[at]]
        share, reason = NEARLY.get(kind, (0, ""))
        assert len(wrong) <= share * COUNT, (kind, texts[kind][wrong[0]], answer.ids[wrong[0]], wanted[wrong[0]])
        assert not reason or any(reason in text for text in inexact(spec, "mtok"))


def test_what_the_file_leaves_inexact_is_told_for_every_form(tmp_path: Path) -> None:
    spec = _specs(tmp_path, ["internlm2"])["internlm2"]
    assert spec.source == "tokenizer.model"
    for form in ("mtok", "text"):
        assert inexact(spec, form)[0] == "text behind a token of the user's gets a leading space"


def test_special_tokens_of_the_file_have_their_names(tmp_path: Path) -> None:
    spec = load_tokenizer(files.piece_folder(tmp_path, "llama2"))
    assert (spec.bos, spec.eos, spec.unk, spec.stop_ids) == ("<s>", "</s>", "<unk>", (2,))
    assert encode_text(spec)[0] == 0


@pytest.mark.mnn
@pytest.mark.parametrize(
    ("kind", "told"),
    [("llama2", "exact but for raw text"), ("kimi", "exact but for rare characters"), ("baichuan", "exact")],
)
def test_a_checkpoint_is_compiled_with_them(kind: str, told: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", vocab_size=1800, bos_token_id=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (source / name).unlink()
    files.FOLDERS[kind](source)
    bos = "{{ bos_token }}" if kind == "llama2" else ""
    (source / "chat_template.jinja").write_text(
        bos + "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    result = compile_model(Request(str(source), tmp_path / "out", "fp16"))
    lines = dict(result.lines)
    assert lines["tokenizer"].splitlines()[0] == f"tokenizer.mtok for 3.5.0 to 3.6.1: {told}"
    assert "chats as the original" in lines["chat"]
    assert not [item for item in result.warnings if item.code in ("B770", "B790")]
