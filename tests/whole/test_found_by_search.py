"""Inputs that `python -m tools.fuzz` once found a fault with; each stands for the kind of fault."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from backends.contract import check_feed
from backends.contract import read as read_contract
from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.tokenizer.spec import load_tokenizer
from backends.onnx.write import to_model
from frontends.checkpoint.load import load as load_checkpoint
from frontends.onnx.load import load as load_onnx
from ir.base.diag import LadingError
from ir.base.types import F32, I64, TensorType
from ir.evaluate.random_feeds import sample_feeds
from ir.graph.graph import Graph
from ir.infer.engine import infer_types
from ir.quant.storage import fit_block
from ir.tensor.inline import InlineTensor
from ir.text.parser import parse
from ir.verify.stages import verify
from passes.framework.load import load as load_pipeline
from tools.compile.job import Request, compile_model
from tools.fuzz.subjects.laws import reads_back
from tools.inspect.summary import summarize
from tools.matrix.random_checkpoints import make_checkpoint
from tools.repair.command import repair


def read(text: str) -> Graph:
    return parse('lading 1\ngraph g {\n  opset "" 24\n' + text + "\n}")


def code_of(action) -> str:
    with pytest.raises(LadingError) as caught:
        action()
    return caught.value.code


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A small model directory."""
    made = tmp_path_factory.mktemp("searched")
    sizes = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    make_checkpoint(made / "checkpoint", "qwen2", **sizes, tie_word_embeddings=True)
    compile_model(Request(str(made / "checkpoint"), made / "model", verify="none"))
    return made / "model"


@pytest.fixture
def model(compiled, tmp_path) -> Path:
    """A model directory to damage."""
    return Path(shutil.copytree(compiled, tmp_path / "model"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ---- graphs ----


@pytest.mark.parametrize("value", ["18446744073709551616", "[1, 18446744073709551616]", '[-0.0, b"x"]', '"\\u{d800}"'])
def test_attributes_that_onnx_cannot_hold(value):
    graph = read("input %x: f32[2]\n%y = test.Foreign(%x) {k = " + value + "}\noutput %y")
    assert code_of(lambda: to_model(graph)) == "T232"


def test_texts_that_onnx_cannot_hold():
    graph = read("input %x: f32[2]\n%y: f32[2] = Neg(%x)\noutput %y")
    graph.metadata["note"] = "\ud800"
    assert code_of(lambda: to_model(graph)) == "T232"
    del graph.metadata["note"]
    graph.rename(graph.outputs[0], "\ud800")
    assert code_of(lambda: to_model(graph)) == "T232"


def test_a_cast_to_no_element_type():
    graph = read("input %x: f32[2]\n%y = mnn.Cast(%x) {to = 4294967296}\noutput %y")
    assert [problem.code for problem in infer_types(graph)] == ["T212"]


def test_attributes_that_onnx_cannot_hold_are_reported_by_inference_and_verifier():
    text = "input %x: f32[1, 2, 4, 4]\n%y = AveragePool(%x) {kernel_shape = [1, 9223372036854775808]}\noutput %y"
    assert [problem.code for problem in infer_types(read(text))] == ["T212"]
    assert "T212" in {problem.code for problem in verify(read(text))}


@pytest.mark.parametrize("op", ["RandomNormal", "EyeLike", "Bernoulli", "HannWindow", "CastLike", "Cast", "ArgMax"])
@pytest.mark.parametrize("number", [0, 30, 200, 2**40])
def test_element_types_that_do_not_exist(op, number):
    key = {"HannWindow": "output_datatype", "Cast": "to"}.get(op, "dtype")
    operands, more = ("", ", shape = [2]") if op == "RandomNormal" else ("%x", "")
    graph = read(f"input %x: f32[2, 2]\n%y = {op}({operands}) {{{key} = {number}{more}}}\noutput %y")
    infer_types(graph)
    verify(graph)


@pytest.mark.parametrize("equation", ["ii.", "i-j", "_", "ij>", "i1,ij", "ij->ij->i", "i..j"])
def test_equations_for_which_onnx_never_ends(equation):
    text = f'input %x: f32[2, 2]\ninput %z: f32[2, 2]\n%y = Einsum(%x, %z) {{equation = "{equation}"}}\noutput %y'
    assert [problem.code for problem in infer_types(read(text))] == ["T212"]


@pytest.mark.parametrize("equation, shape", [("ij, jk -> ik", (2, 2)), ("...i,ij->...j", (2, 2)), ("ij,ij", ())])
def test_equations_that_are_right(equation, shape):
    text = f'input %x: f32[2, 2]\ninput %z: f32[2, 2]\n%y = Einsum(%x, %z) {{equation = "{equation}"}}\noutput %y'
    graph = read(text)
    assert infer_types(graph) == [] and graph.outputs[0].shape == shape


def test_a_constant_that_is_no_tensor():
    graph = read('%y = Constant() {sparse_value = "x"}\noutput %y')
    infer_types(graph)
    assert graph.outputs[0].type is None


def test_an_input_too_large_to_be_made_up():
    graph = Graph("large")
    graph.set_outputs([graph.add_input("x", TensorType(F32, (1 << 31, 4)))])
    assert code_of(lambda: sample_feeds(graph)) == "T227"


def test_a_table_without_rows():
    graph = read("const @t: f32[0, 2] = []\ninput %i: i64[3]\n%y: f32[3, 2] = Gather(@t, %i) {axis = 0}\noutput %y")
    assert sample_feeds(graph)["i"].tolist() == [0, 0, 0]


def test_a_node_without_outputs_where_inputs_meet():
    graph = read("input %x: f32[2]\ninput %z: f32[2]\n() = test.Sink(%x, %z)\n%y: f32[2] = Neg(%x)\noutput %y")
    assert summarize(graph).nodes == 2


def test_the_doctor_meets_an_input_that_is_no_tensor(tmp_path):
    from tools.doctor.command import diagnose, releases_of

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    node = helper.make_node("Neg", ["x"], ["y"])
    proto = helper.make_model(helper.make_graph([node], "g", [value], [helper.make_empty_tensor_value_info("y")]))
    for code in (0, 999):
        proto.graph.input[0].type.tensor_type.elem_type = code
        onnx.save(proto, str(tmp_path / "m.onnx"))
        found = diagnose(tmp_path / "m.onnx", releases_of("all"))
        assert "B691" in [item.code for item in found.findings] and not found.healthy_on("3.6.1")


def test_a_graph_with_a_branch_that_gives_nothing_is_compared():
    from tools.diff.match import Differ

    text = "const @c: bool[] = [true]\n() = If(@c) {then_branch = graph a {}, else_branch = graph b {}}\noutput @c"
    assert not Differ().run(read(text), read(text)).changes


def test_a_dimension_without_a_name():
    graph = read('dim "" = 1..8\ninput %x: f32["", 4]\n%y: f32["", 4] = Neg(%x)\noutput %y')
    assert infer_types(graph) == [] and graph.outputs[0].type == graph.inputs[0].type
    fixed = read('dim "" = 1..8\ninput %x: f32[3, 4]\n%y: f32["", 4] = Neg(%x)\noutput %y')
    assert infer_types(fixed) == []
    free = read('dim "" = 1..8\ninput %x: f32["", 4]\n%y: f32[3, 4] = Neg(%x)\noutput %y')
    assert infer_types(free) == []


def test_a_size_of_too_many_digits():
    assert code_of(lambda: read("input %x: f32[" + "9" * 5000 + "]\noutput %x")) == "I104"


# ---- commands ----


def test_what_the_system_refuses(tmp_path):
    from tools.main import main

    result = CliRunner().invoke(main, ["doctor", str(tmp_path / ("a" * 3000))])
    assert result.exit_code == 1 and "error[B711]: cannot be looked at: File name too long" in result.stderr


def test_too_little_memory(capsys):
    from tools.shared.cli import guarded

    def action() -> int:
        raise MemoryError("no room for 64 GiB")

    assert guarded(action, as_json=False) == 1
    assert "error[U908]: there is not enough memory: no room" in capsys.readouterr().err


# ---- weights and contracts ----


def test_a_block_beyond_the_row_takes_no_memory():
    assert fit_block(96, 1 << 60) == 96 and fit_block(24, 1 << 60) == 8 and fit_block(7, 1 << 60) == 0


@pytest.mark.parametrize("shape", ["xy", (1.5,), (None, 2), 3, [[1]]])
def test_shapes_that_are_no_sizes(compiled, shape):
    contract = read_contract(compiled)
    feed = {item.name: ((1,), item.dtype) for item in contract.signature.inputs}
    feed["input_ids"] = (shape, "float32")
    with pytest.raises(LadingError) as caught:
        check_feed(contract, feed)
    assert "C831" in {item.code for item in caught.value.diagnostics}


@pytest.mark.parametrize("pattern", ["[" * 100_000, "re:(", "re:" + "(" * 1900, "re:a{99999999999999999999}"])
def test_patterns_that_cannot_be_matched_with(tmp_path, pattern):
    from passes.precision.assign_precision import AssignPrecision
    from passes.precision.plan_file import load_rules

    (tmp_path / "plan.json").write_text(json.dumps({"rule": [{"match": pattern, "bits": 4}]}))
    assert code_of(lambda: load_rules(tmp_path / "plan.json")) == "Q411"
    assert code_of(lambda: AssignPrecision(keep=(pattern,)).prepare()) == "Q411"


def test_a_number_of_too_many_digits_in_a_pipeline_file(tmp_path):
    from passes.framework.load import load

    (tmp_path / "p.toml").write_text(f'[[pass]]\nname = "fold"\noptions = {{ max-bytes = {"9" * 5000} }}\n')
    assert code_of(lambda: load(str(tmp_path / "p.toml"))) == "P309"


# ---- numbers that no float can hold ----


@pytest.mark.parametrize(
    "file, key, code",
    [
        ("config.json", "rope_theta", "F530"),
        ("generation_config.json", "temperature", "U904"),
        ("tokenizer_config.json", "model_max_length", "B641"),
    ],
)
def test_a_checkpoint_with_a_huge_number(compiled, tmp_path, file, key, code):
    checkpoint = Path(shutil.copytree(compiled.parent / "checkpoint", tmp_path / "checkpoint"))
    change(checkpoint / file, **{key: 10**400})
    assert code_of(lambda: compile_model(Request(str(checkpoint), tmp_path / "out" / "model", verify="none"))) == code
    assert not (tmp_path / "out").exists()


def test_a_model_directory_with_a_huge_number(model, tmp_path):
    change(model / "llm_config.json", attn_scale=10**400)
    assert code_of(lambda: MnnModel(model)) == "B680"
    assert code_of(lambda: repair(model, tmp_path / "model2")) == "B741"


def test_half_a_character_in_calibration_text(compiled, tmp_path):
    from frontends.text.calibration_text import load_calibration

    (tmp_path / "text.jsonl").write_text('{"text": "ka lo \\ud800 mi"}\n')
    assert code_of(lambda: load_calibration(tmp_path / "text.jsonl", compiled.parent / "checkpoint")) == "Q432"


def test_a_tokenizer_at_which_the_library_panics(compiled, monkeypatch):
    import tokenizers

    from frontends.text.tokenizer import load_in_process

    class Panic(BaseException):
        pass

    class Tokenizer:
        @staticmethod
        def from_file(path: str) -> None:
            raise Panic("range end index out of range")

    monkeypatch.setattr(tokenizers, "Tokenizer", Tokenizer)
    assert code_of(lambda: load_in_process(compiled.parent / "checkpoint")) == "Q435"


@pytest.mark.parametrize("half", [b"\\ud800", b"\xed\xa0\x80"], ids=["escaped", "as bytes"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_half_a_character_in_a_tokenizer(compiled, tmp_path, name, half):
    checkpoint = Path(shutil.copytree(compiled.parent / "checkpoint", tmp_path / "checkpoint"))
    path = checkpoint / name
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, "eos_token": "@half"}))
    load_tokenizer(checkpoint)
    path.write_bytes(path.read_bytes().replace(b"@half", half))
    assert code_of(lambda: load_tokenizer(checkpoint)) == "B641"


def test_a_token_with_a_huge_id(compiled, tmp_path):
    checkpoint = Path(shutil.copytree(compiled.parent / "checkpoint", tmp_path / "checkpoint"))
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    merge = data["model"]["merges"][0]
    data["model"]["vocab"][merge[0] if isinstance(merge, list) else merge.split(" ")[0]] = 2**53 + 1
    (checkpoint / "tokenizer.json").write_text(json.dumps(data))
    assert code_of(lambda: load_tokenizer(checkpoint)) == "B649"


# ---- sizes, depths and numbers that nothing justifies ----

NEG = helper.make_node("Neg", ["x"], ["y"])


def model_with(nodes=(NEG,), initializers=(), sparse=(), shape=(2,), functions=(), opsets=()) -> onnx.ModelProto:
    """A model of one input and one output, and what is to be wrong with it."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], list(initializers), sparse_initializer=list(sparse))
    imports = [helper.make_opsetid("", 24), *opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=list(functions))


@pytest.mark.parametrize("dims", [[0, 2**62], [2**62, 0], [0, 2**40, 2**40], [1] * 65, [2**63 - 1, 0]])
def test_shapes_that_no_array_has(dims):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims)
    assert code_of(lambda: load_onnx(model_with(initializers=[tensor]))) == "F607"
    text = f"const @w: f32[{', '.join(map(str, dims))}] = []\noutput @w"
    assert code_of(lambda: read(text)) == "I104"
    with pytest.raises(LadingError, match="T227"):
        sample_feeds(read(f"input %x: f32[{', '.join(map(str, dims))}]\noutput %x"))


def sparse_tensor(dims, count=1) -> onnx.SparseTensorProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [count], [1.0] * count)
    indices = helper.make_tensor("", TensorProto.INT64, [count], list(range(count)))
    return onnx.SparseTensorProto(values=values, indices=indices, dims=dims)


@pytest.mark.parametrize(
    "dims, code", [([2**28], "F611"), ([2**14, 2**14], "F611"), ([0, 2**62], "F607"), ([2**62], "F607")]
)
def test_a_sparse_tensor_of_a_few_bytes_is_not_made_a_gigabyte(dims, code):
    assert code_of(lambda: load_onnx(model_with(sparse=[sparse_tensor(dims)]))) == code


def test_a_sparse_tensor_with_one_number_in_a_hundred_is_read():
    graph = load_onnx(model_with(sparse=[sparse_tensor([1_000_000], 10_000)]))
    assert graph.value("w").const.load().sum() == 10_000
    assert load_onnx(model_with(sparse=[sparse_tensor([3, 0], 0)])).value("w").shape == (3, 0)


def test_functions_that_double_with_each_call():
    functions = []
    for number in range(40):
        nodes = [helper.make_node(f"f{number + 1}", ["a"], [name], domain="own") for name in ("b", "c")]
        if number == 39:
            nodes = [helper.make_node("Neg", ["a"], ["b"])]
        imports = [helper.make_opsetid("", 24), helper.make_opsetid("own", 1)]
        functions.append(helper.make_function("own", f"f{number}", ["a"], ["b"], nodes, imports))
    call = helper.make_node("f0", ["x"], ["y"], domain="own")
    model = model_with([call], functions=functions, opsets=[helper.make_opsetid("own", 1)])
    assert code_of(lambda: load_onnx(model)) == "F651"
    call.op_type = "f30"
    infer_types(load_onnx(model_with([call], functions=functions, opsets=[helper.make_opsetid("own", 1)])))


def test_a_file_of_gigabytes_that_is_no_model(tmp_path):
    with open(tmp_path / "big.onnx", "wb") as file:
        file.truncate(3 << 30)
    assert code_of(lambda: load_onnx(tmp_path / "big.onnx")) == "F601"


@pytest.mark.parametrize("number", [-5, 0, 2**31, 2**63, -(2**63)])
def test_opsets_that_onnx_cannot_count(number):
    graph = parse(f'lading 1\ngraph g {{\n  opset "" {number}\n  input %x: f32[2]\n  %y = Neg(%x)\n  output %y\n}}')
    infer_types(graph)
    verify(graph)


@pytest.mark.parametrize("name", ["precision-plan", "dynamic-inputs", "model-card", "calibration", "sensitivity"])
@pytest.mark.parametrize("damage", [{"x": 1}, [["x"]], 1e-320, None, 10**30, "\ud800", {}], ids=repr)
def test_facts_of_other_types(compiled, name, damage):
    from ir.graph.facts import build, data_of
    from passes.framework.manager import PassManager

    graph = load_checkpoint(compiled.parent / "checkpoint")
    PassManager("infer-types,discover-inputs,assign-precision").run(graph)
    data = data_of(graph.facts[name]) if name in graph.facts else {"digest": "d", "tokens": 1, "keys": {}, "limit": "l"}
    for key in data:
        try:
            graph.set_fact(name, build(name, {**data, key: damage}))
        except LadingError as error:
            assert error.code == "I107"
            continue
        verify(graph)
        reads_back(graph)


def test_a_fact_that_names_an_input_which_is_not_there(compiled):
    from dataclasses import replace

    from ir.facts.inputs import DynamicInputs
    from passes.framework.manager import PassManager

    graph = load_checkpoint(compiled.parent / "checkpoint")
    PassManager("infer-types,discover-inputs,assign-precision,insert-qdq").run(graph)
    fact = graph.required_fact(DynamicInputs)
    graph.set_fact(fact.name, replace(fact, discoveries=tuple(replace(one, input="a") for one in fact.discoveries)))
    assert code_of(lambda: sample_feeds(graph)) == "I190"
    assert code_of(lambda: PassManager("legalize-mnn").run(graph)) == "I190"


def test_rows_of_the_embedding_in_an_input_without_an_axis(compiled):
    from passes.framework.manager import PassManager

    graph = load_checkpoint(compiled.parent / "checkpoint")
    PassManager("infer-types,discover-inputs").run(graph)
    graph.value("input_ids").type = TensorType(F32, ())
    assert code_of(lambda: sample_feeds(graph)) == "I133"


@pytest.mark.parametrize("op", ["mnn.Slice", "mnn.DynamicQuantizeRows"])
def test_a_scalar_has_no_axis_to_cut(op):
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, ()))
    attrs = {"axis": 0, "points": ()} if op == "mnn.Slice" else {"axis": 0, "option": 0}
    graph.set_outputs([graph.add(op, [x], attrs).output])
    assert [item.code for item in infer_types(graph)] == ["T212"]


def test_an_optional_without_a_value_is_no_tensor():
    """onnxruntime calls an empty optional a tensor and dies when it is asked for its type."""
    from ir.base.types import OptionalType
    from ir.evaluate.evaluator import evaluate

    graph = Graph("g", {"": 21})
    kind = OptionalType(TensorType(F32, (2,)))
    graph.set_outputs([graph.add("Optional", [], {"type": kind}, types=[kind]).output])
    assert code_of(lambda: evaluate(graph, {})) in ("T220", "T225")


def test_calibration_text_with_an_id_beyond_32_bits(compiled, tmp_path):
    from frontends.text.tokenizer import open_tokenizer

    checkpoint = Path(shutil.copytree(compiled.parent / "checkpoint", tmp_path / "checkpoint"))
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    data["added_tokens"].append({**data["added_tokens"][-1], "content": "<far>", "id": 2**31})
    data["model"]["vocab"]["<far>"] = 2**31
    (checkpoint / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = open_tokenizer(checkpoint)
    assert code_of(lambda: tokenizer.encode("a<far>")) == "F650"


@pytest.mark.parametrize("digits", [101, 5000])
def test_numbers_of_thousands_of_digits(tmp_path, digits):
    from passes.framework.pipeline_toml import load_toml
    from passes.framework.registry import default_registry
    from passes.precision.plan_file import load_rules

    number = "9" * digits
    (tmp_path / "plan.toml").write_text(f'[[rule]]\nmatch = "*"\nbits = {number}\n')
    assert code_of(lambda: load_rules(tmp_path / "plan.toml")) in ("Q410", "Q411")
    (tmp_path / "p.toml").write_text(f'[[pass]]\nname = "repeat"\noptions = {{ max = {number} }}\n')
    assert code_of(lambda: load_toml(tmp_path / "p.toml", default_registry())) in ("P309", "P303")
    if digits > 4300:
        assert code_of(lambda: load_pipeline(f"fold{{max-bytes={number}}}")) == "P303"
    for text in (f"input %x: f32[{number}]", f"dim n = 1..{number}", f"const @a: i64[1] = [{number}]", f"{number}"):
        assert code_of(lambda text=text: read(text)) in ("I100", "I104", "I120")


# ---- model directories ----


@pytest.mark.parametrize("value", [["x"], 3, None, {}, "a" * 3000, "\x00"])
def test_names_that_no_file_can_have(model, value):
    from tools.doctor.command import diagnose, releases_of

    for key in ("llm_weight", "llm_model", "llm_config", "embedding_file", "tokenizer_file"):
        change(model / "config.json", **{key: value})
        diagnose(model, releases_of("all"))
    assert code_of(lambda: MnnModel(model)) == "B680"


def test_a_graph_without_operators(model, monkeypatch):
    monkeypatch.setattr("backends.mnn.read.decoded_weights.mnn_to_json", lambda path: b"{}")
    assert code_of(lambda: MnnModel(model).linears) == "B680"


def test_weights_that_are_not_as_the_graph_says(model):
    found = MnnModel(model)
    name, item = next(iter(found.linears.items()))
    found.linears[name] = type(item)(**{**vars(item), "alpha_bytes": 3})
    assert code_of(lambda: found.decode(name)) == "B682"
    assert code_of(lambda: found.decode("no such weight")) == "B682"
    found.llm_config["hidden_size"] = "x"
    assert code_of(lambda: found.embedding_rows(np.array([0]))) == "B680"


def test_half_a_character_in_a_configuration(model, tmp_path):
    from tools.doctor.command import main

    change(model / "llm_config.json", note="\ud800")
    assert code_of(lambda: repair(model, tmp_path / "out" / "model")) == "B741"
    assert not (tmp_path / "out").exists()
    change(model / "config.json", **{"\ud800": 1})
    result = CliRunner().invoke(main, [str(model), "--json"])
    assert result.exit_code == 1 and "surrogates not allowed" in json.dumps(json.loads(result.stdout))


@pytest.mark.parametrize("dims", ["1, 0, -2", "-1", "0, -1"])
def test_a_constant_has_no_sizes_below_zero(dims):
    with pytest.raises(LadingError, match="static tensor type") as error:
        parse(f"lading 1\ngraph g {{\n  const @c: i4[{dims}] = []\n}}")
    assert error.value.code == "I104"


def test_metadata_of_nodes_is_text():
    with pytest.raises(LadingError, match="object of texts") as error:
        parse('lading 1\ngraph g {\n  input %x: f32[2]\n  %y = Relu(%x) meta {"k": 3}\n  output %y\n}')
    assert error.value.code == "I100"


def test_a_slice_of_an_axis_below_zero_is_a_mismatch():
    graph = Graph("g")
    x = graph.add_input("x", TensorType(F32, (-3, 2)))
    starts = graph.add_const("s", InlineTensor(np.array([0], np.int64)))
    graph.set_outputs([graph.add("Slice", [x, starts, starts, starts]).output])
    assert [item.code for item in infer_types(graph)] == ["T212"]


def test_inputs_that_pick_along_an_axis_that_is_not_there_are_fed():
    graph = Graph("g")
    table = graph.add_const("t", InlineTensor(np.zeros((3, 2), np.float32)))
    ids = graph.add_input("ids", TensorType(I64, (2,)))
    graph.set_outputs([graph.add("Gather", [table, ids], {"axis": 5}).output])
    assert set(sample_feeds(graph)["ids"].tolist()) <= {-1, 0, 1}


def test_an_id_far_beyond_the_vocabulary_is_refused_before_tables_are_made(tmp_path):
    folder = make_checkpoint(tmp_path / "model", "qwen2")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["added_tokens"][-1]["id"] = 2_000_000_000
    (folder / "tokenizer.json").write_text(json.dumps(data))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2_000_000_001}))
    with pytest.raises(LadingError, match="ids go up to 2000000000") as error:
        load_tokenizer(folder)
    assert error.value.code == "B649"
