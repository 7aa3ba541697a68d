"""What MNN's converter makes of ONNX models that read tensors which nothing makes, and of other runtimes' graphs: the
doctor's findings on the ``.mnn`` file against what loading it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.mnn.doctor.examine import examine
from backends.mnn.doctor.onnx.conversion import load
from backends.mnn.doctor.remedy import remedy
from backends.mnn.doctor.rows import row_choice
from backends.mnn.read.model_folder import Subject
from backends.mnn.run import native
from backends.mnn.target.releases import RELEASES, Release
from tests.support.checkpoints import make_checkpoint
from tests.support.lost.models import lost_file, quantized_file
from tests.support.runs import compiled, interpreters
from tools.doctor.command import main

ALL = tuple(RELEASES.values())


def converted(source: Path) -> Path:
    """What this environment's converter makes of an ONNX file."""
    made = source.with_suffix(".mnn")
    ended = native.onnx_to_mnn(source, made)
    assert ended.ok and made.is_file(), ended.log
    return made


def found(path: Path) -> dict[str, str]:
    """Messages by code, of findings on every release."""
    report = examine(path, ALL)
    return {item.code: f"{item.where}: {item.message}" for item in report.findings if len(item.releases) == len(ALL)}


def happens(path: Path, release: Release) -> str:
    """What loading and running a file does on a release."""
    return load(path, release, interpreters()[release.version], timeout_s=120)


def test_the_choice_of_rows_that_nothing_makes(tmp_path):
    """The graph behind ``tensor [ logits_index ] is input but not found``: index -1, a double free at load."""
    path = converted(lost_file(tmp_path, "slice"))
    told = found(path)
    assert set(told) == {"B685"}
    assert told["B685"].startswith("row: StridedSlice 'row' reads tensor number -1 as its begin")
    assert "the runtime feeds this choice as 'logits_index'" in told["B685"]
    for version in interpreters():
        assert happens(path, RELEASES[version]).startswith("loading crashed with SIG"), version


def test_another_operand_that_nothing_makes(tmp_path):
    told = found(converted(lost_file(tmp_path, "end")))
    assert "StridedSlice 'row' reads tensor number -1 as its end" in told["B685"]
    assert "logits_index" not in told["B685"]


@pytest.mark.parametrize(
    ("kind", "op", "word"), [("matmul", "MatMul", "right operand"), ("reshape", "Reshape", "shape")]
)
def test_a_last_operand_that_nothing_makes_is_left_away(kind, op, word, tmp_path):
    path = converted(lost_file(tmp_path, kind))
    assert f"{op} 'row' has no {word}" in found(path)["B686"]
    newest = list(interpreters())[-1]
    assert "the first call" in happens(path, RELEASES[newest])


def test_a_declared_choice_of_rows_is_whole(tmp_path):
    path = converted(lost_file(tmp_path, "slice", declared=True))
    assert examine(path, ALL).findings == []
    choice = row_choice(Subject(path))
    assert choice is not None and choice.op["name"] == "row" and choice.fixed is None
    newest = list(interpreters())[-1]
    assert happens(path, RELEASES[newest]) == "loaded and ran; its numbers were not compared"


def test_rows_that_tracing_froze(tmp_path):
    fixed = found(converted(lost_file(tmp_path, "frozen")))
    assert set(fixed) == {"B689"} and "from row 6 on whatever is asked for" in fixed["B689"]
    last = examine(converted(lost_file(tmp_path, "last")), ALL)
    assert [item.code for item in last.findings] == ["B689"] and last.healthy
    assert set(found(converted(lost_file(tmp_path, "whole")))) == {"B713"}


def test_an_empty_graph(tmp_path):
    path = converted(quantized_file(tmp_path))
    assert "nothing makes 'out'" in found(path)["B688"]
    newest = list(interpreters())[-1]
    assert happens(path, RELEASES[newest]) == "loading failed: Can't find output out"


def test_the_command_loads_a_lone_file_in_children(tmp_path):
    path = converted(lost_file(tmp_path, "slice"))
    result = CliRunner().invoke(main, [str(path), "--run", "--json", "--runtime", "3.6.1"])
    data = json.loads(result.stdout)
    assert result.exit_code == 1 and data["verdicts"]["3.6.1"]["codes"] == ["B685"]
    run = data["verdicts"]["3.6.1"]["run"]
    assert run.startswith("loading crashed with SIG") if "3.6.1" in interpreters() else run.startswith("not run")


# ---- model directories ----


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    return compiled(make_checkpoint(folder / "model", "qwen2"), folder / "out", "int8")


@pytest.fixture
def model(sound, tmp_path):
    """A copy without the contract that would notice a change."""
    folder = shutil.copytree(sound, tmp_path / "model")
    (folder / "contract.json").unlink()
    return folder


def rebuild(folder: Path, change) -> None:
    """Apply a function to MNN's JSON form of the graph."""
    net = json.loads(native.mnn_to_json(folder / "llm.mnn"))
    change(net)
    native.json_to_mnn(net, folder / "llm.mnn")


def undeclare(net, name):
    net["oplists"] = [op for op in net["oplists"] if not (op["type"] == "Input" and op["name"] == name)]


def test_a_tensor_with_a_name_that_is_fed_need_not_be_declared(model):
    rebuild(model, lambda net: undeclare(net, "logits_index"))
    report = examine(model, ALL)
    assert report.healthy and Subject(model).undeclared == {"logits_index"}
    assert native.run_model(model / "config.json", [{"do": "forward", "pieces": [[1, 2, 3]]}]).failure is None


def test_an_undeclared_tensor_that_is_not_fed_is_named(model):
    def change(net):
        undeclare(net, "logits_index")
        net["tensorName"][net["tensorName"].index("logits_index")] = "row_number"

    rebuild(model, change)
    told = found(model)
    assert "reads the tensor 'row_number', which nothing makes or declares" in told["B712"]
    run = native.run_model(model / "config.json", [{"do": "forward", "pieces": [[1, 2, 3]]}])
    assert "tensor [ row_number ] is input but not found" in run.child.log and run.failure is not None


def test_outputs_that_no_release_reads(model):
    rebuild(model, lambda net: net.update(outputName=["logits", "present.0.key", "present.0.value"]))
    (item,) = examine(model, ALL).findings
    assert item.code == "B693" and "'present.0.key' and 1 more" in item.message and item.severity == "warning"


# ---- graphs of other runtimes ----


def test_a_graph_that_looks_ids_up_and_keeps_no_history(tmp_path):
    """Attention written out over integer ids and a mask, as exporters for other runtimes write it."""
    path = converted(foreign_file(tmp_path))
    told = found(path)
    assert {"B691", "B695", "B713"} <= set(told)
    newest = list(interpreters())[-1]
    assert "the first call" in happens(path, RELEASES[newest])


def test_a_directory_with_a_converted_graph(sound, tmp_path):
    """The file that it came from is named where it lies beside, as exporters leave it."""
    folder = shutil.copytree(sound, tmp_path / "model", ignore=shutil.ignore_patterns("contract.json"))
    converted(lost_file(tmp_path, "matmul")).replace(folder / "llm.mnn")
    found = remedy(examine(folder, ALL))
    assert found is not None and not found.command
    assert found.reason.startswith("lading doctor FILE.onnx names the tensor, and lading compile FILE.onnx")
    (folder / "onnx").mkdir()
    lost_file(folder / "onnx", "matmul")
    found = remedy(examine(folder, ALL))
    assert found is not None and found.reason.endswith(
        f", which may be {folder}/onnx/matmul.onnx: lading doctor {folder}/onnx/matmul.onnx"
    )


def foreign_file(folder: Path) -> Path:
    """One layer of attention from token ids and a mask of ones to logits."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    numbers = {
        "table": rng.normal(size=(20, 8)).astype(np.float32),
        **{name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("wq", "wk", "wv")},
        "head": rng.normal(size=(8, 20)).astype(np.float32),
        "axes": np.array([1]),
        "one": np.float32(1),
        "many": np.float32(-1e9),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        *(helper.make_node("MatMul", ["x", f"w{part}"], [part]) for part in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["s"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "m"], ["gone"]),
        helper.make_node("Mul", ["gone", "many"], ["bias"]),
        helper.make_node("Unsqueeze", ["bias", "axes"], ["rows"]),
        helper.make_node("Add", ["s", "rows"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("MatMul", ["o", "head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [1, "seq"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "seq", 20])]
    constants = [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, constants)
    path = folder / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
