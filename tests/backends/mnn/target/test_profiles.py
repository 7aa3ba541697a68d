"""Release profiles, targets, and models compiled for runtimes that feed different inputs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backends.mnn.lower.fit import check_storage
from backends.mnn.run import native
from backends.mnn.target.environments import LLM_RELEASES
from backends.mnn.target.releases import FIELDS, HISTORIES, PROFILES, RELEASES, VERSIONS, matching, target
from backends.mnn.target.sizes import fixed_bytes
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.base.diag import LadingError
from ir.base.types import F32, Dim, TensorType
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.tensor.inline import InlineTensor
from tests.support.checkpoints import make_checkpoint
from tests.support.paths import ROOT
from tests.support.runs import compiled, torch_logits, torch_model
from tools.compile.job import Request, compile_model

RUNNER = ROOT / "backends" / "mnn" / "run" / "module_runner.py"
OLD = ["input_ids", "attention_mask", "position_ids"]
IDS = list(range(3, 14))


def test_every_field_begins_with_the_first_release_and_has_evidence():
    for history in HISTORIES:
        assert history.steps[0].since == VERSIONS[0]
        keys = [PROFILES[step.since].key for step in history.steps]
        assert keys == sorted(set(keys))
        assert all(len(step.evidence) > 4 for step in history.steps)
        assert all(a.value != b.value for a, b in zip(history.steps, history.steps[1:], strict=False))


def test_releases_with_a_runtime_are_those_that_environments_are_made_for():
    assert tuple(RELEASES) == LLM_RELEASES


def test_fields_are_attributes():
    old, new = PROFILES["3.0.0"], PROFILES["3.6.1"]
    assert (old.signature, new.signature) == ("mnn-llm-3.0", "mnn-llm")
    assert "past_key_values" in old.optional_inputs and "ple_embeddings" in new.optional_inputs
    assert new.evidence("last_binary").startswith("schema/default/TensorflowOp.fbs")
    assert (PROFILES["3.4.1"].mtok, PROFILES["3.5.0"].mtok) == (False, True)
    with pytest.raises(AttributeError):
        _ = new.f17_scales
    assert all(getattr(release, name) is not None for release in PROFILES.values() for name in FIELDS)


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("portable", ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")),
        ("3.0.0", ("3.0.0",)),
        (">=3.4,<3.6", ("3.4.0", "3.4.1", "3.5.0")),
        (">= 3.4 , != 3.4.1, < 3.6", ("3.4.0", "3.5.0")),
        ("~=3.4.0", ("3.4.0", "3.4.1")),
        ("~=3.4", ("3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1")),
        ("==3.6.*", ("3.6.0", "3.6.1")),
        (">3.6.0", ("3.6.1",)),
        ("<=3.0", ("3.0.0",)),
        ("!=3.4.*,>3.2,<=3.5.0", ("3.5.0",)),
    ],
)
def test_targets(text, versions):
    assert target(text).versions == versions


@pytest.mark.parametrize(
    ("text", "code"),
    [("3.3.0", "B600"), ("portabel", "B600"), (">=4", "B700"), (">=3.x", "B700"), (">=3.4,", "B700"), ("~=3", "B700"),
     (">=3.4.*", "B700"), (">=3.0", "B701")],
)  # fmt: skip
def test_targets_that_are_refused(text, code):
    with pytest.raises(LadingError) as caught:
        target(text)
    assert caught.value.code == code


def test_ranges_agree_with_the_packaging_library():
    specifiers = pytest.importorskip("packaging.specifiers")
    for text in (">=3.4,<3.6", "~=3.4.0", "~=3.4", "==3.6.*", "!=3.4.*", "<3.6", ">3.4", "<=3.5", "==3.5", "!=3.5"):
        wanted = [version for version in VERSIONS if specifiers.SpecifierSet(text).contains(version)]
        assert [release.version for release in matching(text)] == wanted, text


def markdown_table() -> str:
    """The profiles as a Markdown table, then the evidence for each entry."""
    lines = ["| field | " + " | ".join(VERSIONS) + " |", "|" + "---|" * (len(VERSIONS) + 1)]
    for history in HISTORIES:
        values = [_words(history.at(version).value) for version in VERSIONS]
        lines.append(f"| `{history.name}` | " + " | ".join(values) + " |")
    lines += ["", "| field | meaning | since | value | evidence |", "|---|---|---|---|---|"]
    for history in HISTORIES:
        for step in history.steps:
            lines.append(
                f"| `{history.name}` | {history.meaning} | {step.since} | {_words(step.value)} | {step.evidence} |"
            )
    return "\n".join(lines) + "\n"


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, dict)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def test_the_page_shows_the_table():
    page = (ROOT / "docs" / "releases.md").read_text()
    assert page.endswith(markdown_table())
    assert set(re.findall(r"\b3\.\d\.\d\b", page.splitlines()[0] + page)) <= set(VERSIONS)


# ---- both ways of feeding ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("source") / "model", "qwen2", tie_word_embeddings=True)


def run_module(folder: Path, checkpoint: Path, inputs: list[str]):
    """Load with exactly these names, as older runtimes do, and feed a square float mask."""
    table = torch_model(checkpoint).get_input_embeddings().weight.detach().numpy()
    count = len(IDS)
    gap = np.arange(count)[:, None] >= np.arange(count)[None]
    feeds = {
        "input_ids": table[IDS][:, None].astype(np.float32),
        "attention_mask": np.where(gap, 0, np.finfo(np.float32).min).astype(np.float32)[None, None],
        "position_ids": np.arange(count, dtype=np.int32),
        "logits_index": np.zeros(1, np.int32),
    }
    request = {"model": str(folder / "llm.mnn"), "inputs": inputs, "outputs": ["logits"]}
    return native.run_child(
        RUNNER, request, {name: feeds[name] for name in inputs}, interpreter=sys.executable, timeout_s=60
    )


def test_a_model_for_3_0_loads_with_the_old_names_and_is_right(checkpoint, tmp_path):
    folder = compiled(checkpoint, tmp_path / "out", "fp32", target="3.0.0")
    ended = run_module(folder, checkpoint, OLD)
    assert ended.ok, ended.log
    wanted = torch_logits(torch_model(checkpoint), IDS)
    got = ended.arrays["outputs/logits"].reshape(wanted.shape)
    assert np.abs(got - wanted).max() < 1e-4 * max(1, np.abs(wanted).max())


def test_a_portable_model_does_not_load_with_the_old_names(checkpoint, tmp_path):
    folder = compiled(checkpoint, tmp_path / "out", "fp32")
    ended = run_module(folder, checkpoint, OLD)
    assert "tensor [ logits_index ] is input but not found" in ended.log
    assert not ended.records[0]["loaded"]
    assert run_module(folder, checkpoint, [*OLD, "logits_index"]).ok


def test_3_0_gets_no_silu_no_exact_tokenizer_and_an_embedding_file(checkpoint, tmp_path):
    result = compile_model(Request(str(checkpoint), tmp_path / "out", "int8", target="3.0.0", verify="none"))
    net = native.mnn_to_json(result.out / "llm.mnn")
    assert b"SILU" not in net and b"SIGMOID" in net and b"logits_index" not in net
    names = {path.name for path in result.out.iterdir()}
    assert "embeddings_bf16.bin" in names and "tokenizer.mtok" not in names
    assert result.contract.target.releases == ("3.0.0",)
    assert [item.name for item in result.contract.signature.inputs] == OLD


def test_embedding_rows_that_a_release_misreads_are_refused(checkpoint, tmp_path):
    request = Request(str(checkpoint), tmp_path / "out", "int8{embedding-bits=8}", target="3.0.0", verify="none")
    with pytest.raises(LadingError) as caught:
        compile_model(request)
    assert caught.value.code == "B702" and "3.0.0" in str(caught.value)


def test_rows_of_an_odd_table_are_read_at_four_bits_where_no_release_misreads_them():
    assert target(">=3.5").reads_rows(4, 321) and not target(">=3.5").reads_rows(2, 321)
    assert not target().reads_rows(4, 321) and target().reads_rows(8, 321) and target().reads_rows(4, 320)


@pytest.mark.parametrize(("rows", "targets"), [(320, ()), (321, ("3.4.0", "3.4.1"))])
def test_odd_vocabularies_at_four_bits_are_refused_where_they_are_misread(rows, targets):
    weight = SimpleNamespace(name="w", rows=rows, columns=64, block=32, bits=4, storage=Storage(bits=4, block=32))
    sizes = {"offset": 0, "header_bytes": 22, "code_bytes": 32 * rows, "alpha_bytes": 16 * rows, "bias_bytes": 0}
    layout = Layout(embedding=Matrix(weight=weight, bias=None, **sizes))
    refused = []
    for version in RELEASES:
        try:
            check_storage(layout, target(version))
        except LadingError as error:
            assert error.code == "B702" and "odd" in str(error)
            refused.append(version)
    assert tuple(refused) == targets


def test_a_gain_of_unknown_size_is_not_in_the_weight_file():
    graph = Graph("gain")
    size = graph.add_dim(Dim("n"))
    x, gain = (graph.add_input(name, TensorType(F32, shape)) for name, shape in (("x", (2, size)), ("gain", (size,))))
    known = graph.add_const("known", InlineTensor(np.ones(4, np.float32)))
    graph.set_outputs([graph.add("RMSNormalization", [x, one]).output for one in (gain, known)])
    assert fixed_bytes(graph) == 8 * 4
