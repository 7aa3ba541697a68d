"""What legalize-mnn, the MNN writer, its reader and the commands refuse, each under its own code."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.target.environments import installed_version
from backends.mnn.verify.logits import Level, Subject, verify
from backends.mnn.verify.written_weights import read_back
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_layout import plan_layout
from frontends.checkpoint.load import load
from ir.base.diag import LadingError, known_codes
from ir.facts.inputs import DynamicInputs
from ir.text.parser import parse
from passes.framework.manager import PassManager
from tests.support.checkpoints import hot_tensors, make_checkpoint, write_weights
from tools.compile.command import main
from tools.compile.job import EXAMPLE, Request, compile_model
from tools.main import main as lading


def refused(code: str, call, *args, says: str = "", **options) -> LadingError:
    """Call, and require an error of this code whose text says something."""
    with pytest.raises(LadingError) as caught:
        call(*args, **options)
    assert caught.value.code == code and says in str(caught.value), str(caught.value)
    return caught.value


def graph_of(*lines: str):
    """A graph with two free dimensions from the lines of its body."""
    return parse("lading 1\ngraph g {\n  dim n = 1..8\n  dim m = 1..8\n  " + "\n  ".join(lines) + "\n}\n")


# ---- legalize-mnn ----


def legalized(*lines: str) -> None:
    graph = graph_of(*lines)
    graph.set_fact(DynamicInputs.name, DynamicInputs("mnn-llm", ()))
    PassManager("legalize-mnn").run(graph, given=("signature", "quantized"))


def test_operator_without_an_mnn_form():
    refused("P370", legalized, "input %x: f32[2, 2]", "%y: f32[] = Det(%x)", "output %y", says="Det")


def test_reshape_with_two_sizes_left_open():
    lines = (
        "const @s: i64[3] = [0, 0, 2]", "input %x: f32[n, m, 2, 1]", "%y: f32[n, m, 2] = Reshape(%x, @s)", "output %y",
    )  # fmt: skip
    refused("P371", legalized, *lines, says="more than one size")


def test_product_of_two_computed_values():
    lines = "input %x: f32[1, n, 4]", "input %z: f32[4, 4]", "%y: f32[1, n, 4] = MatMul(%x, %z)", "output %y"
    refused("P372", legalized, *lines, says="MatMul")


@pytest.mark.parametrize(
    "lines",
    [
        ("input %x: f64[n, 4]", "%y: f64[n, 4] = Swish(%x)"),
        ("input %x: f32[n, 4]", "%y: f16[n, 4] = Cast(%x) {to = 10}"),
        ("const @s: i64[1] = [3]", "const @e: i64[1] = [0]", "const @a: i64[1] = [1]", "const @d: i64[1] = [-1]",
         "input %x: f32[n, 4]", "%y: f32[n, 3] = Slice(%x, @s, @e, @a, @d)"),
        ("const @s: i64[1] = [-2]", "const @e: i64[1] = [9]", "const @a: i64[1] = [0]",
         "input %x: f32[n, 4]", "%y: f32[n, 4] = Slice(%x, @s, @e, @a)"),
        ("const @i: i64[1] = [4294967296]", "input %x: i32[n, 4]", "%y: i64[n, 4] = Add(%x, @i)"),
        (
            "input %x: f32[1, n, 4]", "input %c: f32[1, n, 2]",
            "%y: f32[1, n, 4] = RotaryEmbedding(%x, %c, %c) {num_heads = 2}",
        ),
        ("input %x: f32[1, n, 4]", "input %c: f32[1, n, 1]", "%y: f32[1, n, 4] = RotaryEmbedding(%x, %c, %c)"),
    ],
    ids=[
        "double precision",
        "half precision",
        "slice backwards",
        "slice before the start",
        "more than 32 bits",
        "angles for more than a head",
        "rotation of no heads",
    ],
)  # fmt: skip
def test_operators_with_attributes_or_operands_that_mnn_lacks(lines):
    refused("P373", legalized, *lines, "output %y")


@pytest.mark.parametrize(
    ("says", "lines"),
    [
        ("the size n", ("%y: f32[2, 1], %z: f32[n, 1] = Split(%x) {axis = 0}", "output %z")),
        ("the size n", ("%y: f32[n, 1] = Split(%x) {axis = 0, num_outputs = 1}",)),
        ("axes that are constants", ("%y: f32[n, m] = Squeeze(%w)",)),
        ("axes that are constants", ("input %a: i64[1]", "%y: f32[n, m, 1] = Unsqueeze(%v, %a)")),
        ("axes that are constants", ("input %a: i64[1]", "%y: f32[n, 1] = ReduceMax(%x, %a)")),
        ("%y is f32[*]", ("input %s: i64[2]", "%y: f32[*] = Reshape(%x, %s)")),
        ("the size m", ("input %g: f32[m]", "%y: f32[n, m] = RMSNormalization(%v, %g)")),
        ("the size m", ("%y: f32[1, n, m] = RotaryEmbedding(%q, %q, %q) {num_heads = 2}",)),
        (
            "the size m",
            ("%y: f32[1, n, m] = Attention(%q, %q, %q) {q_num_heads = 2, kv_num_heads = 2, is_causal = 1}",),
        ),
    ],
    ids=[
        "cut of an open axis",
        "one piece of an open axis",
        "squeeze of all ones",
        "unsqueeze",
        "maximum",
        "reshape",
        "gain of open length",
        "rotation of open width",
        "attention of open width",
    ],
)
def test_sizes_and_constants_that_an_mnn_form_needs_and_the_graph_does_not_tell(says, lines):
    inputs = ("input %x: f32[n, 1]", "input %v: f32[n, m]", "input %w: f32[n, m, 1]", "input %q: f32[1, n, m]")
    refused("P373", legalized, *inputs, *lines, "output %y", says=says)


# ---- layout and net ----


def test_matrix_with_more_elements_than_the_loader_counts():
    lines = (
        'const @w: f32[40000, 65536] = transposed(file("none.bin", 0, f32[65536, 40000], "w"))',
        'const @b: f32[65536] = file("none.bin", 0, f32[65536], "b")',
        "input %x: f32[n, 40000, 1, 1]", "%y: f32[n, 65536, 1, 1] = mnn.Convolution(%x, @w, @b)", "output %y",
    )  # fmt: skip
    refused("B601", plan_layout, graph_of(*lines), says="65536 x 40000")


def test_embedding_rows_in_a_form_that_no_runtime_reads():
    lines = (
        'const @e: f32[16, 8] = file("none.bin", 0, f32[16, 8], "e")', "input %x: f32[n]", "%y: f32[n] = mnn.Unary(%x) "
        '{kind = "ABS"}', "output %y", "table embedding = @e",
    )  # fmt: skip
    refused("B602", plan_layout, graph_of(*lines), says="32 bits")


def net_of(*lines: str):
    graph = graph_of(*lines)
    return build_net(graph, plan_layout(graph))


def test_operator_without_an_encoding():
    refused("B610", net_of, "input %x: f32[n]", "%y: f32[n] = Relu(%x)", "output %y", says="Relu")


def test_inputs_and_constants_of_types_that_mnn_has_not():
    unary = '%y: f64[n] = mnn.Unary(%x) {kind = "ABS"}'
    refused("B611", net_of, "input %x: f64[n]", unary, "output %y", says="f64")
    binary = '%y: f32[n] = mnn.Binary(%x, @c) {kind = "ADD"}'
    refused("B611", net_of, "const @c: f16[1] = [1.0]", "input %x: f32[n]", binary, "output %y", says="f16")


def test_input_of_unknown_rank():
    unary = '%y: f32[*] = mnn.Unary(%x) {kind = "ABS"}'
    refused("B611", net_of, "input %x: f32[*]", unary, "output %y", says="unknown rank")


# ---- weights that cannot be written ----


def compiles(source: Path, out: Path, pipeline: str = "fp32", **options) -> None:
    compile_model(Request(str(source), out, pipeline, verify="none", **options))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_floats_that_are_not_finite(tmp_path, name):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    tensors = hot_tensors(json.loads((source / "config.json").read_text()))
    tensors[name].reshape(-1)[3] = np.nan
    write_weights(source, tensors)
    refused("B621", compiles, source, tmp_path / "out", says=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


# ---- reading back ----


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The example as `default` writes it, with the graph and the layout it was written from."""
    folder = tmp_path_factory.mktemp("written") / "out"
    compiles(EXAMPLE, folder, "default")
    graph = load(EXAMPLE)
    PassManager("default").run(graph)
    return folder, graph, plan_layout(graph)


@pytest.fixture
def copy(written, tmp_path):
    """The directory, free to be damaged, with its graph and layout."""
    folder, graph, layout = written
    return shutil.copytree(folder, tmp_path / "copy"), graph, layout


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x11]))


def reads_back(folder, graph, layout):
    with ThreadPoolExecutor(2) as pool:
        return read_back(graph, layout, folder, pool)


def test_sound_directory_reads_back(copy):
    folder, graph, layout = copy
    errors = reads_back(folder, graph, layout)
    assert len(errors) == 29 and all(0 < item.rms_relative < 0.2 for item in errors.values())


@pytest.mark.parametrize("name", ["llm.mnn.weight", "llm_config.json", "config.json"])
def test_directory_that_lacks_a_file(copy, name):
    (copy[0] / name).unlink()
    refused("B680", MnnModel, copy[0], says=name)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_directory_with_a_damaged_configuration(copy, text):
    (copy[0] / "llm_config.json").write_text(text)
    refused("B680", MnnModel, copy[0], says="llm_config.json")


def test_truncated_weight_file(copy):
    folder, graph, layout = copy
    path = folder / "llm.mnn.weight"
    path.write_bytes(path.read_bytes()[:-1000])
    refused("B681", reads_back, folder, graph, layout, says=str(path))


def test_header_of_another_matrix(copy):
    folder, graph, layout = copy
    matrix = next(iter(layout.matrices.values()))
    flip(folder / "llm.mnn.weight", matrix.offset + 1)
    refused("B682", reads_back, folder, graph, layout, says="the header of")


@pytest.mark.parametrize("part", ["code_offset", "alpha_offset", "bias_offset"])
def test_numbers_that_decode_to_others(copy, part):
    folder, graph, layout = copy
    matrix = list(layout.matrices.values())[3]
    flip(folder / "llm.mnn.weight", getattr(matrix, part) + 2)
    refused("B683", reads_back, folder, graph, layout)


# ---- verification ----


def test_model_that_computes_other_logits_than_its_weights_say(copy):
    folder, graph, layout = copy
    flip(folder / "llm.mnn.weight", next(iter(layout.vectors.values())).offset + 3)
    settings = {"memory": "low", "precision": "low", "thread_num": 1}
    subject = Subject(folder, load(EXAMPLE), graph, [[5, 6, 7]], [], settings)
    found = verify(subject, Level(1, 2, 0), version=installed_version() or "unknown")
    assert "V700" in {item.code for item in found.problems}
    refused("V700", found.require, says="other logits")


# ---- commands ----


def command_fails(code: str, *arguments: object, says: str = "") -> None:
    """Run ``lading compile``, and require the code on standard error and nothing on standard output."""
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exit_code == 1 and f"error[{code}]" in result.stderr and says in result.stderr, result.output
    assert result.stdout == ""


@pytest.mark.parametrize("text", ["[", "[1]", '"x"'])
def test_sampling_defaults_that_are_not_an_object(tmp_path, text):
    source = make_checkpoint(tmp_path / "source", "qwen2")
    (source / "generation_config.json").write_text(text)
    command_fails("U904", source, "-o", tmp_path / "out", "--verify", "none", says="generation_config.json")
    assert not (tmp_path / "out").exists()


def test_verification_without_a_runtime(tmp_path, monkeypatch):
    monkeypatch.setattr("backends.mnn.target.environments.installed_version", lambda: None)
    command_fails("U906", "-o", tmp_path / "out", says="--verify none")
    assert not (tmp_path / "out").exists()


def test_no_model_where_there_is_no_example(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.compile.job.EXAMPLE", tmp_path / "site-packages" / "examples" / "tiny-qwen2.5")
    monkeypatch.chdir(tmp_path)
    command_fails("U901", says="source tree")
    assert list(tmp_path.iterdir()) == []


def test_example_of_the_source_tree_we_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.compile.job.EXAMPLE", tmp_path / "site-packages" / "examples" / EXAMPLE.name)
    monkeypatch.chdir(EXAMPLE.parent.parent)
    result = CliRunner().invoke(main, ["-o", str(tmp_path / "out"), "--verify", "none", "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["out"] == str(tmp_path / "out")


def test_explain_prints_the_help_text_in_either_case():
    for code in ("F533", "f533"):
        result = CliRunner().invoke(lading, ["explain", code])
        assert result.exit_code == 0
        assert " ".join(result.stdout.split()).startswith(f"F533: {known_codes()['F533']}")


def test_explain_knows_near_codes():
    result = CliRunner().invoke(lading, ["explain", "F5333"])
    assert result.exit_code == 1 and "error[U900]" in result.stderr and "did you mean 'F533'" in result.stderr
