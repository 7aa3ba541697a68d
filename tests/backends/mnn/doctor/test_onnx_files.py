"""The doctor on ONNX files: what is wrong with the file, what each release's converter and engine would make of it, held
against doing it, and the line that compiles it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from backends.contract import read
from backends.mnn.doctor.onnx.examine import examine_onnx
from backends.mnn.doctor.remedy import remedy
from backends.mnn.target.releases import PROFILES, RELEASES
from tests.support.lost.models import lost_file, quantized_file
from tests.support.paths import EXAMPLE
from tests.support.runs import compiled, interpreters
from tools.doctor.command import main
from tools.main import main as lading

ALL = tuple(RELEASES.values())


def run(*arguments: object):
    """The command in this process."""
    return CliRunner().invoke(main, [str(item) for item in arguments])


def told(path: Path, releases=ALL) -> dict[str, str]:
    """Messages by code, but for that the file is ONNX."""
    return {item.code: item.message for item in examine_onnx(path, releases).findings if item.code != "B732"}


def save(path: Path, nodes, inputs, outputs, constants=(), **domains: int) -> Path:
    """A model of nodes; inputs and outputs are name, element type and shape."""
    infos = [[helper.make_tensor_value_info(*item) for item in side] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *infos, list(constants))
    opsets = [
        helper.make_opsetid("", 17),
        *(helper.make_opsetid(name.replace("_", "."), v) for name, v in domains.items()),
    ]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


# ---- tensors that nothing makes ----


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
("slice", "logits_index", "by Slice 'rows' (starts), which makes it i64[1]. The converter would print 'has empty input, "
         "the index is 1' and write tensor number -1 in its place"),
        ("gather", "logits_index", "by Gather 'rows' (indices), which makes it i64[rows]. The converter would print 'has empty "
         "input, the index is 1' and crash, or leave it away"),
        ("matmul", "weight", "and crash, or leave it away"),
        ("where", "keep", "by Where 'rows' (condition), which makes it bool["),
        ("clip", "high", "by Clip 'rows' (max), which makes it f32[]. The converter would print 'has empty input, the index is "
         "2', report success and compute as if it was left out on purpose: wrong numbers"),
        ("reshape", "shape", "by Reshape 'rows' (shape), which makes it i64[3]"),
    ],
)  # fmt: skip
def test_a_dangling_tensor_is_named_with_its_readers(kind, name, words, tmp_path):
    found = told(lost_file(tmp_path, kind))
    assert found["B684"].startswith(f"{name!r} is read and never made: ") and words in found["B684"]
    assert ("B713" in found) == (name != "logits_index")


@pytest.mark.parametrize("kind", ["slice", "end", "gather", "add", "matmul", "reshape"])
def test_what_is_told_of_dangling_tensors_happens(kind, tmp_path):
    """The converter crashes, or what it writes does or gives nothing; of slices this is tried on each release."""
    asked = list(interpreters()) if kind == "slice" else list(interpreters())[-1:]
    result = run(lost_file(tmp_path, kind), "--run", "--json", "--runtime", f">={asked[0]},<={asked[-1]}")
    data = json.loads(result.stdout)
    assert result.exit_code == 1 and data["verdicts"][asked[-1]]["codes"][0] == "B684"
    runs = [item["run"] for item in data["verdicts"].values() if not item["run"].startswith("not run")]
    assert len(runs) == len(asked)
    dies = ("the converter crashed", "converted; loading crashed", "converted; loaded; the first call")
    assert all(text.startswith(dies) for text in runs), runs


def test_an_operand_that_is_taken_for_left_out_is_computed_without(tmp_path):
    newest = list(interpreters())[-1]
    data = json.loads(run(lost_file(tmp_path, "clip"), "--run", "--json", "--runtime", newest).stdout)
    runs = {item["run"] for item in data["verdicts"].values() if not item["run"].startswith("not run")}
    assert runs == {"converted; loaded and ran; its numbers were not compared"}


def pasted(line: str, verify: str = "none") -> None:
    """Run a line of the doctor as a person would, in the working folder."""
    words = shlex.split(line)
    assert words[:2] == ["lading", "compile"]
    done = CliRunner().invoke(lading, [*words[1:], "--verify", verify])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("kind", "name", "dtype"),
    [
        ("clip", "high", "f32"),
        ("slice", "logits_index", "i32"),
        ("where", "keep", "i32"),
    ],
)
def test_the_sentence_and_the_line_for_a_dangling_tensor(kind, name, dtype, tmp_path, monkeypatch):
    """Compiled and run, the contract asks for the tensor as MNN holds it: integers and truth values in 32 bits."""
    monkeypatch.chdir(tmp_path)
    lost_file(tmp_path, kind)
    lines = run(f"{kind}.onnx").stdout.splitlines()
    assert lines[0] == (
        f"{kind}.onnx is an ONNX model that reads {name!r}, which nothing makes. MNN loads no ONNX; this compiles it for MNN "
        "3.4.0 to 3.6.1:"
    )
    assert lines[2] == f"  lading compile {kind}.onnx -o {kind} --to mnn"
    assert json.loads(run(f"{kind}.onnx", "--json").stdout)["repair"] == lines[2].strip()
    pasted(lines[2], "quick")
    assert run(f"{kind}/model.mnn").exit_code == 0 == run(kind).exit_code
    (asked,) = [item for item in read(kind).signature.inputs if item.name == name]
    assert asked.dtype == dtype and asked.discovered is not None


def test_a_dangling_choice_of_places_is_compiled_and_run(tmp_path, monkeypatch):
    """Numbers of 64 bits, negative ones among them, choose rows on MNN as in the file."""
    monkeypatch.chdir(tmp_path)
    save(
        tmp_path / "m.onnx",
        [helper.make_node("Gather", ["x", "which"], ["y"])],
        [("x", 1, [8, 4])],
        [("y", 1, ["k", 4])],
    )
    pasted(run("m.onnx").stdout.splitlines()[2], "quick")
    assert {item.name: item.dtype for item in read("m").signature.inputs} == {"x": "f32", "which": "i32"}


def test_what_mnn_cannot_hold_is_declared_for_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = remedy(examine_onnx(lost_file(tmp_path, "matmul"), ALL))
    assert found is not None and not found.command and "lading compile refuses it (P372)" in found.reason
    line = found.reason.partition("; ")[2].partition(" writes it for onnxruntime")[0]
    pasted(line)
    (made,) = [item for item in onnx.load("matmul/model.onnx").graph.input if item.name == "weight"]
    assert [dim.dim_value for dim in made.type.tensor_type.shape.dim][:1] == [16]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example as an ONNX file, as a graph that another compiler could have written."""
    folder = tmp_path_factory.mktemp("example")
    compiled(EXAMPLE, folder / "plain", "onnx-fp32", to="onnx")
    return folder / "plain" / "model.onnx"


def dangling(source: Path, path: Path) -> Path:
    """A language model whose logits are of the rows from ``logits_index`` on, which is declared nowhere."""
    model = onnx.load(source)
    (head,) = [node for node in model.graph.node if "logits" in node.output]
    numbers = {"rows_end": 2**31 - 1, "rows_axis": 1}
    for name, number in numbers.items():
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [number]))
    rows = helper.make_node("Slice", [head.input[0], "logits_index", *numbers], ["rows"], name="choose_rows")
    model.graph.node.insert(list(model.graph.node).index(head), rows)
    head.input[0] = "rows"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"
    onnx.save(model, path)
    return path


def test_a_language_model_with_a_dangling_choice_of_rows(example, tmp_path, monkeypatch):
    """Said what it is, and compiled by the line to what the checkpoint gives."""
    monkeypatch.chdir(tmp_path)
    path = dangling(example, tmp_path / "dangling.onnx")
    shutil.copy(EXAMPLE / "tokenizer.json", tmp_path)
    text = run(path.name).stdout
    lines = text.splitlines()
    assert lines[0] == (
        "dangling.onnx is a language model in ONNX that reads 'logits_index', which nothing makes. MNN loads no ONNX; this "
        "compiles it for MNN 3.4.0 to 3.6.1:"
    )
    assert "input_ids i64[1, seq] (token ids)" in " ".join(text.split())
    assert set(told(path)) == {"B684", "B687", "B691"}
    assert lines[2] == "  lading compile dangling.onnx -o dangling"
    pasted(lines[2])
    assert run("dangling").exit_code == 0
    direct = compiled(EXAMPLE, tmp_path / "direct", "default")
    assert (tmp_path / "dangling" / "llm.mnn.weight").read_bytes() == (direct / "llm.mnn.weight").read_bytes()


def test_without_a_tokenizer_the_line_says_so(example, tmp_path):
    path = dangling(example, tmp_path / "dangling.onnx")
    report = examine_onnx(path, ALL)
    assert [item.severity for item in report.findings if item.code == "B744"] == ["warning"]
    found = remedy(report)
    assert found is not None and found.command.endswith(" --tokenizer none")
    raised = report.needs["raised"]
    assert [port["kind"] for port in raised["inputs"]] == ["token-ids", "row-choice"]


def test_an_output_that_nothing_makes(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [("x", 1, [3])], [("z", 1, [3])])
    assert told(path)["B684"] == (
        "'z' is an output that nothing makes. The converter would write a graph without it, and loading would fail"
    )


# ---- operators ----


def test_operators_that_converters_do_not_know(tmp_path):
    nodes = [
        helper.make_node("IsNaN", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["c"], to=1),
        helper.make_node("GroupQueryAttention", ["c"], ["a"], domain="com.microsoft"),
        helper.make_node("Gelu", ["a"], ["y"], domain="com.microsoft"),
        helper.make_node("STFT", ["x"], ["z"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [("x", 1, [3])], [("y", 1, [3])], com_microsoft=1)
    found = [item for item in examine_onnx(path, tuple(PROFILES.values())).findings if item.code == "B687"]
    assert {(item.severity, item.releases) for item in found} == {
        ("error", tuple(PROFILES)), ("error", ("3.0.0",)), ("warning", tuple(PROFILES)),
    }  # fmt: skip
    texts = [item.message for item in found]
    assert any("knows no IsNaN (1), com.microsoft.GroupQueryAttention (1)" in text for text in texts)
    assert all(text.endswith(". This compiler knows them") for text in texts if "knows no" in text)
    assert any("takes com.microsoft.Gelu for ONNX's operator of that name" in text for text in texts)


def test_quantized_patterns(tmp_path):
    found = told(quantized_file(tmp_path))
    assert found["B687"].startswith(
        "of QuantizeLinear and DequantizeLinear the converter crashes on quantized activations"
    )
    report = examine_onnx(tmp_path / "quantized.onnx", ALL)
    assert set(report.needs["converted_as_it_is"].values()) == {"wrong, or an empty graph"}


# ---- language models for other runtimes ----


def test_the_signature_of_another_runtime(tmp_path):
    ports = [
        ("input_ids", TensorProto.INT64, [1, "seq"]),
        ("attention_mask", TensorProto.INT64, [1, "total"]),
        *((f"past_key_values.{place}.key", TensorProto.FLOAT, [1, 2, "past", 8]) for place in range(6)),
    ]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["f"], to=1),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=1),
        helper.make_node("Sum", ["f", "m", *(name for name, _, _ in ports[2:])], ["s"]),
        helper.make_node("Softmax", ["s"], ["logits"]),
    ]
    found = told(save(tmp_path / "m.onnx", nodes, ports, [("logits", TensorProto.FLOAT, [1, "seq", 9])]))
    assert set(found) - {"T211"} == {"B691", "B695", "B712", "B713"}
    assert (
        found["B712"].startswith("the engine does not feed 'past_key_values.0.key', ") and "and 2 more" in found["B712"]
    )
    data = json.loads(run(tmp_path / "m.onnx", "--json").stdout)
    assert set(data["needs"]["converted_as_it_is"].values()) == {"loading fails"}
    assert not data["needs"]["language_model"]  # by its names only


def test_a_decoder_without_its_embedding(example, tmp_path):
    """As MNN's own exporter and others write it: rows go in, and the embedding lies beside the file or elsewhere."""
    model = onnx.load(example)
    (look_up,) = [node for node in model.graph.node if node.op_type == "Gather" and "input_ids" in node.input[1]]
    (table,) = [item for item in model.graph.initializer if item.name == look_up.input[0]]
    rows = numpy_helper.to_array(table)
    ids = model.graph.input[0]
    ids.CopyFrom(helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, [1, "seq", rows.shape[1]]))
    for node in model.graph.node:
        node.input[:] = ["input_ids" if name == look_up.output[0] else name for name in node.input]
    model.graph.node.remove(look_up)
    path = tmp_path / "rows.onnx"
    onnx.save(model, path)
    first = run(path).stdout.splitlines()[0]
    assert "is a language model in ONNX. It cannot be compiled for MNN: lading compile refuses it (B673): " in first
    assert "name it with --embedding" in first
    rows.astype(np.float32).tofile(tmp_path / "embeddings_bf16.bin")
    assert remedy(examine_onnx(path, ALL)).command.endswith(" --tokenizer none")


def test_declarations_without_a_type(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], [("x", 1, [3])], [("y", 1, [3])])
    model = onnx.load(path)
    model.graph.input.add(name="u")
    model.graph.node.add(op_type="Relu", input=["u"], output=["v"])
    onnx.save(model, path)
    found = told(path)
    assert found["B691"] == "no element type is declared for the input 'u': the converter takes a float"
    assert run(path).exit_code == 1


def test_what_cannot_be_compiled_is_said(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Unheard", ["x"], ["y"], domain="de.example")], [("x", 1, [3])],
                [("y", 1, [3])], de_example=1)  # fmt: skip
    text = run(path).stdout
    assert f"{path} is an ONNX model. It cannot be compiled for MNN: lading compile refuses it (" in text
    assert "Unheard" in text.splitlines()[0] and "lading compile m" not in text
    assert told(path)["B687"].endswith("Nor does this compiler know de.example.Unheard")


@pytest.mark.parametrize("data", [b"", b"\xff" * 50])
def test_files_that_are_no_models(data, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(data)
    result = run(tmp_path / "bad.onnx")
    assert result.exit_code == 1 and "error[U950]" in result.stderr
