"""The judge of ONNX's test cases on MNN, and the page that it writes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from backends.mnn.target.environments import installed_version, interpreters
from ir.base.child import ChildFailed
from tools.conformance.cases import Case, collect
from tools.conformance.command import main
from tools.conformance.compare import differs
from tools.conformance.held import Unfit, as_held
from tools.conformance.judge import CRASH, FAILS, REFUSED, RIGHT, UNJUDGED, WRONG, judge
from tools.conformance.operators import operators
from tools.conformance.page import DATA, PAGE, made_with, page
from tools.conformance.record import Record, Row, read, rows_of, word, write
from tools.conformance.routes import Compiled, ProductRoute, Refused
from tools.conformance.suite import judge_all

EVERY = 15
"""Each so many-th case is judged again."""


@pytest.fixture(scope="module")
def known() -> list[Case]:
    return [case for case in collect() if isinstance(case, Case)]


# ---- the page ----


def test_the_page_follows_from_the_record():
    record = read(DATA)
    assert PAGE.read_text() == page(record), "python -m tools.conformance --page writes it anew"


def test_the_record_is_about_every_case(known):
    record = read(DATA)
    if record.made_with != made_with():
        pytest.skip(f"the record was made with {record.made_with}")
    about = operators(known)
    assert {row.key: row.operator for row in record.rows} == about


def test_the_record_claims_nothing_wrong_and_no_crash():
    record = read(DATA)
    bad = {WRONG, FAILS, CRASH}
    assert not [row.key for row in record.rows if bad & set(row.ours.values())]


def found_again(cases, known, release):
    """Cases of which the record says something else than is found now."""
    record = read(DATA)
    if record.made_with != made_with():
        pytest.skip(f"the record was made with {record.made_with}")
    told = {row.key: row.ours[release] for row in record.rows}
    verdicts = list(judge_all(cases, known, release, raw=False, verify=True, workers=2))
    assert len(verdicts) == len(cases)
    return [(item.key, told[item.key], word(item), item.reason) for item in verdicts if told[item.key] != word(item)]


@pytest.mark.mnn
def test_a_sample_of_cases_is_as_the_record_says(known):
    release = installed_version()
    if release not in read(DATA).releases:
        pytest.skip(f"the record is not about MNN {release}")
    sample = [case for case in known if case.kind != "light"][::EVERY]
    assert not found_again(sample, known, release)


@pytest.mark.mnn
@pytest.mark.slow
@pytest.mark.parametrize("release", ["3.4.0", "3.4.1", "3.5.0", "3.6.0", "3.6.1"])
def test_all_cases_are_as_the_record_says(known, release):
    if release not in interpreters():
        pytest.skip(f"no environment of MNN {release}; python -m tools.releases makes one")
    assert not found_again(known, known, release)


def test_a_record_is_read_as_it_was_written(tmp_path):
    releases = ("3.4.0", "3.6.1")
    rows = [
        Row("node/test_a", "A", True, {"3.4.0": "P378", "3.6.1": "right"}, dict.fromkeys(releases, "crash")),
        Row(
            "node/test_b", "several operators", False, dict.fromkeys(releases, "V703"), dict.fromkeys(releases, "wrong")
        ),
    ]
    record = Record("onnx 1", releases, rows)
    write(record, tmp_path / "record.tsv")
    assert read(tmp_path / "record.tsv") == record
    text = page(record)
    assert "| 3.4.0 | 0 | 2 | 0 | 0 | 0 | 0 | 1 | 1 |" in text and "| 3.6.1 | 1 | 1 | 0 | 0 | 0 | 0 | 1 | 1 |" in text
    assert "1 V703" in text


# ---- the judge ----


def case(op: str = "Add", value: float = 3.0) -> Case:
    """A case of one node, which is right when the result is `value`."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xyz"]
    graph = helper.make_graph([helper.make_node(op, ["x", "y"], ["z"])], "g", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    one, two, wanted = (np.array([number], np.float32) for number in (1.0, 2.0, value))
    return Case("node", f"test_{op}", model.SerializeToString(), [([one, two], [wanted])], 1e-3, 1e-7)


class Planned:
    """A way to a model that does what it is told to."""

    def __init__(self, result=None, compiling=None, running=None) -> None:
        self.result, self.compiling, self.running = result, compiling, running

    def compile(self, model, folder):
        """See `tools.conformance.routes.Route.compile`."""
        if self.compiling:
            raise self.compiling
        return Compiled(folder / "model.mnn", dict.fromkeys("xy", np.dtype(np.float32)), ["z"])

    def run(self, compiled, feeds):
        """See `tools.conformance.routes.Route.run`."""
        if self.running:
            raise self.running
        return [self.result if self.result is not None else feeds["x"] + feeds["y"]]

    def close(self):
        """See `tools.conformance.routes.Route.close`."""


VERDICTS = {
    "right": (case(), Planned(), RIGHT, ""),
    "other numbers": (case(value=4.0), Planned(), WRONG, "1 of 1 differ, the first at [0]: 3, not 4"),
    "another shape": (
        case(), Planned(np.full((1, 1), 3.0, np.float32)), WRONG, "shape [1, 1] instead of [1], values right",
    ),
    "refused": (case(), Planned(compiling=Refused("P378", "no form")), REFUSED, "no form"),
    "a fault of the compiler": (case(), Planned(compiling=KeyError("x")), CRASH, "in the compiler: KeyError"),
    "the converter dies": (case(), Planned(compiling=ChildFailed("died of SIGSEGV")), CRASH, "in the conversion: died"),
    "the runtime dies": (case(), Planned(running=ChildFailed("died of SIGFPE")), CRASH, "in the run: died of SIGFPE"),
    "the runtime fails": (case(), Planned(running=ChildFailed("failed", "bad", "raised")), FAILS, "in the run: failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(name):
    given, route, status, reason = VERDICTS[name]
    found = judge(given, "Add", route)
    assert (found.status, found.operator, found.plain) == (status, "Add", True)
    assert reason in found.reason


def test_inputs_that_do_not_fit_and_outputs_that_cannot_be_compared():
    whole = case()
    large = Case("node", "test_large", whole.model, [([np.array([1e300]), np.ones(1)], whole.data[0][1])], 1e-3, 1e-7)
    found = judge(large, "Add", Planned())
    assert (found.status, found.code, found.reason) == (REFUSED, "feed", "1e+300 is no float32")
    text = Case("node", "test_text", whole.model, [(whole.data[0][0], [np.array(["a"])])], 1e-3, 1e-7)
    assert judge(text, "Add", Planned()).status == UNJUDGED


def test_random_numbers_are_not_judged_and_their_shapes_are():
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xyz"]
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["z"])]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:2], info[2:])).SerializeToString()
    given = Case("node", "test_random", model, [([np.ones(1), np.ones(1)], [np.array([7.0])])], 1e-3, 1e-7)
    assert judge(given, "RandomNormalLike", Planned()).status == UNJUDGED
    assert judge(given, "RandomNormalLike", Planned(np.ones(2, np.float32))).status == WRONG


def test_comparison_by_the_type_that_is_expected():
    assert not differs([np.array([1.0005], np.float32)], [np.array([1.0])])
    assert differs([np.array([1001])], [np.array([1000])])
    assert not differs([np.array([1.0, np.nan], np.float32)], [np.array([1.002, np.nan], np.float16)])
    assert differs([np.array([1.002], np.float32)], [np.array([1.0], np.float32)])
    assert differs([np.zeros(1)], [np.zeros(1), np.zeros(1)])
    rounded = onnx.helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
    assert differs([np.array([0.48], np.float32)], [np.array([0.46875]).astype(rounded)])


def test_arrays_in_the_types_that_are_held():
    assert as_held(np.array([2**31 - 1]), np.dtype(np.int32)).tolist() == [2**31 - 1]
    assert as_held(np.array([True]), np.dtype(np.int32)).tolist() == [1]
    assert np.isinf(as_held(np.array([np.inf]), np.dtype(np.float32))).all()
    for array, dtype in (([2**31], np.int32), ([-(2**31) - 1], np.int32), (["a"], np.float32)):
        with pytest.raises(Unfit):
            as_held(np.array(array), np.dtype(dtype))


def test_what_a_case_is_about(known):
    about = operators(known)
    assert about["node/test_abs"] == "Abs" and about["node/test_softmax_axis_0_expanded"] == "Softmax (body)"
    assert about["simple/test_sign_model"] == "Sign" and about["node/test_momentum"].endswith("training.Momentum")
    assert about["light/light_squeezenet"] == "several operators"


# ---- the command ----


@pytest.mark.mnn
def test_the_command_tells_of_each_case_and_counts(tmp_path):
    out = tmp_path / "verdicts.jsonl"
    done = CliRunner().invoke(main, ["--only", "test_abs", "--out", str(out)])
    assert done.exit_code == 0 and "1 cases, 1 right" in done.output
    assert '"status": "right"' in out.read_text()
    done = CliRunner().invoke(main, ["--only", "test_string_concat", "--status", "refused"])
    assert done.exit_code == 0 and "REFUSED P378 node/test_string_concat" in done.output


@pytest.mark.mnn
def test_the_command_judges_the_converter_alone():
    done = CliRunner().invoke(main, ["--only", "test_maxpool_2d_ceil", "--raw"])
    assert "2 cases, 1 right, 1 wrong" in done.output and done.exit_code == 1


def test_a_page_needs_a_source_tree(tmp_path, monkeypatch):
    monkeypatch.setattr("tools.conformance.page.PAGE", tmp_path / "docs" / "page.md")
    done = CliRunner().invoke(main, ["--page"])
    assert done.exit_code == 1 and "error[U966]" in done.output


def test_rows_are_made_of_verdicts_by_release():
    verdict = judge(case(), "Add", Planned())
    refused = judge(case(), "Add", Planned(compiling=Refused("P378", "no form")))
    (row,) = rows_of({"3.4.0": [refused], "3.6.1": [verdict]}, {"3.4.0": [verdict], "3.6.1": [verdict]})
    assert row.ours == {"3.4.0": "P378", "3.6.1": "right"} and row.raw == {"3.4.0": "right", "3.6.1": "right"}


# ---- real models ----


def saved(path, text: str) -> None:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'), path)


LINE = "g (float[n, 3] x) => (float[n, 3] y) <float[1] two = {2.0}> { t = Mul(x, two)  u = Identity(t)  y = Tanh(u) }"


@pytest.mark.mnn
def test_models_are_judged_against_onnxruntime(tmp_path):
    saved(tmp_path / "line.onnx", LINE)
    saved(tmp_path / "text.onnx", "g (string[n] x) => (string[n] y) { y = Identity(x) }")
    np.savez(tmp_path / "line.npz", x=np.full((2, 3), 0.25, np.float32))
    done = CliRunner().invoke(main, ["--models", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "RIGHT line.onnx: 3 nodes, canonicalized 2; error " in done.output
    assert "REFUSED" in done.output and "2 models, 1 right, 1 refused" in done.output


@pytest.mark.mnn
def test_a_model_that_gives_other_numbers_is_wrong(tmp_path, monkeypatch):
    saved(tmp_path / "line.onnx", LINE)
    compile_file = ProductRoute.compile_file

    def another(self, source, folder):
        saved(folder / "other.onnx", LINE.replace("{2.0}", "{2.1}"))
        return compile_file(self, folder / "other.onnx", folder)

    monkeypatch.setattr(ProductRoute, "compile_file", another)
    done = CliRunner().invoke(main, ["--models", str(tmp_path / "line.onnx")])
    assert done.exit_code == 1 and "WRONG line.onnx" in done.output and "off by 0.0" in done.output
