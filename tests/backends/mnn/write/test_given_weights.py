"""Weights that came quantized are written code by code, read back by the independent reader, and run."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from backends.mnn.lower.fit import check_storage
from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.run import native
from backends.mnn.target.releases import target
from backends.mnn.verify.written_weights import read_back
from backends.mnn.write.configs import CONFIG, LLM_CONFIG, MODEL, WEIGHTS
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_file import fill, weight_jobs
from backends.mnn.write.weight_layout import Layout, plan_layout
from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.types import F32, I8, Dim, TensorType
from ir.evaluate.evaluator import evaluate
from ir.facts.inputs import DynamicInputs
from ir.graph.graph import Graph, Value
from ir.tensor.inline import InlineTensor
from passes.framework.manager import PassManager
from tests.support.checkpoints import make_checkpoint

RUNNER = Path(__file__).resolve().parents[3] / "support" / "linear_run.py"
OUT, COLUMNS = 24, 128
TYPES = {
    "i4": (ml_dtypes.int4, -8, 8),
    "u4": (ml_dtypes.uint4, 0, 16),
    "i8": (np.int8, -128, 128),
    "u8": (np.uint8, 0, 256),
}
FORMS = {"tensor": 0, "rows": 0, "blocks": 32}
CASES = {
    f"{kind}.{form}.{'zeros' if zeros else 'plain'}": (kind, form, zeros)
    for kind in TYPES
    for form in FORMS
    for zeros in (False, True)
}
"""Every integer type and form of DequantizeLinear, with and without zero points."""


def given(graph: Graph, name: str, kind: str, form: str, zeros: bool, shape: tuple[int, int], axis: int = 0) -> Value:
    """A matrix under DequantizeLinear whose input features run along an axis, its codes taken at random."""
    made = np.random.default_rng(len(graph.consts))
    dtype, low, high = TYPES[kind]
    table = list(shape)
    table[axis] = table[axis] // 32
    numbers = {"tensor": (), "rows": (shape[1 - axis],), "blocks": tuple(table)}[form]
    parts = {"codes": made.integers(low, high, shape).astype(dtype)}
    parts["scale"] = made.uniform(0.5, 1, numbers).astype(np.float32) * np.float32(0.2 / high)
    if zeros:
        parts["zero"] = np.asarray(made.integers(low, high, numbers)).astype(dtype)
    values = [graph.add_const(f"{name}.{key}", InlineTensor(array)) for key, array in parts.items()]
    attrs = {"tensor": {}, "rows": {"axis": 1 - axis}, "blocks": {"axis": axis, "block_size": 32}}[form]
    type_ = TensorType(F32, shape)
    return graph.add("DequantizeLinear", values, attrs, outputs=[name], types=[type_], before=graph.first).output


def linears(weights: dict[str, tuple[str, str, bool]]) -> Graph:
    """A linear layer for each weight, all on one input, as MNN operators."""
    graph, made = Graph("linears", {"": 24}), np.random.default_rng(0)
    rows, ends = graph.add_dim(Dim("rows", 1, 64)), []
    x = graph.add_input("x", TensorType(F32, (rows, COLUMNS, 1, 1)))
    packed = graph.add("mnn.ConvertTensor", [x], {"source": "NCHW", "dest": "NC4HW4"}, types=[x.type]).output
    for name, case in weights.items():
        weight = given(graph, f"{name}.w", *case, (COLUMNS, OUT))
        bias = graph.add_const(f"{name}.b", InlineTensor(made.normal(0, 1, OUT).astype(np.float32)))
        type_ = TensorType(F32, (rows, OUT, 1, 1))
        product = graph.add("mnn.Convolution", [packed, weight, bias], {}, outputs=[f"{name}.conv"], types=[type_])
        attrs = {"source": "NC4HW4", "dest": "NCHW"}
        ends.append(graph.add("mnn.ConvertTensor", [product.output], attrs, outputs=[name], types=[type_]).output)
    graph.set_outputs(ends)
    return graph


def written(graph: Graph, folder: Path) -> Layout:
    """Write the model and the weights of a graph that MNN can hold, and the configurations that readers ask for."""
    layout = plan_layout(graph)
    with ThreadPoolExecutor(1) as pool:
        path = folder / WEIGHTS
        fill(path, layout.nbytes, weight_jobs(layout, path), pool)
    native.json_to_mnn(build_net(graph, layout), folder / MODEL)
    for name in (CONFIG, LLM_CONFIG):
        (folder / name).write_text("{}")
    return layout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Every form as a linear layer: the graph, its layout, and where it was written."""
    folder, graph = tmp_path_factory.mktemp("given"), linears(CASES)
    return graph, written(graph, folder), folder


@pytest.mark.parametrize("name", CASES)
def test_codes_scales_and_zeros_are_written_as_they_came(model, name):
    graph, layout, folder = model
    kind, form, zeros = CASES[name]
    const = {key.rpartition(".")[2]: value.const.load() for key, value in graph.consts.items() if key.startswith(name)}
    matrix = next(item for item in layout.matrices.values() if item.weight.name == f"{name}.w")
    half = 2 ** (matrix.weight.bits - 1) if kind[0] == "u" else 0
    read = MnnModel(folder)
    found = read.codes(f"{name}.conv")
    np.testing.assert_array_equal(found, const["codes"].astype(np.int16).T - half)
    assert read.linears[f"{name}.conv"].asymmetric == (zeros or kind[0] == "u")

    scale, zero = const["scale"].T, const["zero"].astype(np.float32).T if zeros else np.float32(0)
    scale, zero = np.broadcast_to(scale, np.shape(scale) or (1,)), np.broadcast_to(zero, np.shape(scale) or (1,))
    scale, zero = (np.broadcast_to(part.reshape(-1, part.shape[-1] if part.ndim == 2 else 1), (OUT, 4 if form == "blocks" else 1))
                   for part in (scale, zero))  # fmt: skip
    width = COLUMNS // scale.shape[1]
    wide = found.astype(np.float32).reshape(OUT, -1, width) * scale[:, :, None] - ((zero - half) * scale)[:, :, None]
    np.testing.assert_array_equal(read.decode(f"{name}.conv"), wide.reshape(OUT, COLUMNS))


def test_what_is_written_reads_back_to_the_numbers_that_were_given(model):
    graph, layout, folder = model
    with ThreadPoolExecutor(1) as pool:
        errors = read_back(graph, layout, folder, pool)
    assert set(errors) == {f"{name}.w" for name in CASES}
    assert all(error.rms_relative == error.max_abs == 0 for error in errors.values())


def test_mnn_computes_what_the_constants_say(model):
    graph, _, folder = model
    feeds = {"x": np.random.default_rng(4).normal(0, 1, (7, COLUMNS, 1, 1)).astype(np.float32)}
    names = [value.name for value in graph.outputs]
    request = {"model": str(folder / MODEL), "inputs": ["x"], "outputs": names, "calls": [7]}
    ended = native.run_child(RUNNER, request, feeds, interpreter=sys.executable, timeout_s=60)
    for name, wanted in evaluate(graph, feeds).items():
        got = ended.arrays[f"normal/{name}.7"].reshape(wanted.shape)
        assert np.abs(got - wanted).max() <= 2e-4 * np.abs(wanted).max(), name


# ---- in a decoder ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "qwen2", tie_word_embeddings=False)


def replaced(folder: Path, forms: dict[str, tuple[str, str, bool]]) -> Graph:
    """The graph of a checkpoint with matrices whose names hold a word replaced by quantized ones."""
    graph = load(folder)
    for value in [value for value in graph.consts.values() if value.type.rank == 2]:
        form = next((form for word, form in forms.items() if word in value.name), None)
        if form is not None:
            name = value.name
            made = given(graph, f"{name}.given", *form, value.shape, axis=int(value.users[0].op == "Gather"))
            graph.replace(value, made)
            graph.erase_const(value)
            graph.rename(made, name)
    return graph


DECODER = {
    "q_proj": ("i8", "rows", False), "k_proj": ("u8", "tensor", True), "v_proj": ("u4", "blocks", True),
    "gate_proj": ("i4", "blocks", False), "lm_head": ("u8", "rows", True), "embed": ("i8", "rows", False),
}  # fmt: skip


def test_a_decoder_with_quantized_weights_compiles_with_them(checkpoint, tmp_path):
    graph = replaced(checkpoint, DECODER)
    names = {"v_proj": (4, 32), "gate_proj": (4, 32), "q_proj": (8, 0), "k_proj": (8, 0), "lm_head": (8, 0)}
    ids = np.arange(5, 14)
    wanted = evaluate(graph, {"input_ids": ids[None]})["logits"][0]
    PassManager("fp32").run(graph)
    layout = written(graph, tmp_path)
    check_storage(layout, target("portable"))
    stored = {matrix.weight.name: matrix.weight.storage for matrix in layout.matrices.values()}
    for word, form in names.items():
        found = {(item.bits, item.block, item.method) for name, item in stored.items() if word in name}
        assert found == {(*form, "stored")}, word
    assert {item.bits for name, item in stored.items() if "up_proj" in name} == {32}
    assert layout.embedding.weight.storage.method == "stored" and not layout.embedding_shared
    read = MnnModel(tmp_path)
    for node, matrix in layout.matrices.items():
        rows = matrix.weight.dequantized_rows(0, matrix.weight.rows)
        np.testing.assert_array_equal(read.decode(node.output.name), rows)
    computed = evaluate(graph, graph.required_fact(DynamicInputs).feeds(graph, ids))["logits"].reshape(wanted.shape)
    assert np.abs(computed - wanted).max() <= 1e-4 * np.abs(wanted).max()


# ---- what cannot be held ----


def refused(code: str, call) -> str:
    with pytest.raises(LadingError) as caught:
        call()
    assert caught.value.code == code and caught.value.diagnostics[0].hint
    return str(caught.value)


def sharing(graph: Graph, attrs: dict[str, int], shape: tuple[int, ...]) -> Value:
    codes = graph.add_const("codes", InlineTensor(np.zeros((COLUMNS, OUT), np.int8)))
    scale = graph.add_const("scale", InlineTensor(np.ones(shape, np.float32)))
    return graph.add(
        "DequantizeLinear", [codes, scale], attrs, outputs=["w"], types=[TensorType(F32, (COLUMNS, OUT))]
    ).output


@pytest.mark.parametrize(
    ("attrs", "shape", "reason"),
    [
        ({"axis": 0}, (COLUMNS,), "a scale for each of 128 input features"),
        ({"axis": 1, "block_size": 8}, (COLUMNS, 3), "shared by weights of several rows"),
        ({"axis": 0, "block_size": 48}, (3, OUT), "blocks of 48 do not divide"),
    ],
)
def test_scales_that_are_no_rows_of_blocks_are_refused_with_the_reason(attrs, shape, reason):
    graph = Graph("g", {"": 24})
    rows = graph.add_dim(Dim("rows", 1, 64))
    x = graph.add_input("x", TensorType(F32, (1, rows, COLUMNS)))
    weight = sharing(graph, attrs, shape)
    type_ = TensorType(F32, (1, rows, OUT))
    graph.set_outputs([graph.add("MatMul", [x, weight], outputs=["y"], types=[type_]).output])
    graph.set_fact(DynamicInputs.name, DynamicInputs("mnn-llm", ()))
    lower = PassManager("legalize-mnn")
    assert reason in refused("B604", lambda: lower.run(graph, given=("signature", "quantized")))

    graph = Graph("g", {"": 24})
    rows = graph.add_dim(Dim("rows", 1, 64))
    x = graph.add_input("x", TensorType(F32, (rows, COLUMNS, 1, 1)))
    bias = graph.add_const("b", InlineTensor(np.zeros(OUT, np.float32)))
    inputs, type_ = [x, sharing(graph, attrs, shape), bias], TensorType(F32, (rows, OUT, 1, 1))
    graph.set_outputs([graph.add("mnn.Convolution", inputs, {}, types=[type_]).output])
    assert reason in refused("B604", lambda: plan_layout(graph))


def test_blocks_that_releases_compute_wrong_are_refused():
    graph = Graph("g", {"": 24})
    rows = graph.add_dim(Dim("rows", 1, 64))
    x = graph.add_input("x", TensorType(F32, (rows, COLUMNS, 1, 1)))
    bias = graph.add_const("b", InlineTensor(np.zeros(OUT, np.float32)))
    weight = sharing(graph, {"axis": 0, "block_size": 2}, (COLUMNS // 2, OUT))
    type_ = TensorType(F32, (rows, OUT, 1, 1))
    graph.set_outputs([graph.add("mnn.Convolution", [x, weight, bias], {}, types=[type_]).output])
    assert "blocks of 2" in refused("B697", lambda: check_storage(plan_layout(graph), target("portable")))


def test_codes_that_are_computed_are_an_operator_without_a_form():
    graph = Graph("g", {"": 24})
    x = graph.add_input("x", TensorType(I8, (COLUMNS, OUT)))
    scale = graph.add_const("scale", InlineTensor(np.ones((), np.float32)))
    graph.set_outputs([graph.add("DequantizeLinear", [x, scale], types=[TensorType(F32, (COLUMNS, OUT))]).output])
    graph.set_fact(DynamicInputs.name, DynamicInputs("mnn-llm", ()))
    with pytest.raises(LadingError, match="P370"):
        PassManager("legalize-mnn").run(graph, given=("signature", "quantized"))
