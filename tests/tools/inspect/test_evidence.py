"""Roles and parts of an exported decoder as people and programs see them."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from ir.base.diag import Diagnostic
from ir.facts.raised import Port, Raised, Region
from tests.support.paths import EXAMPLE
from tests.support.runs import compiled
from tools.inspect.command import main
from tools.shared.evidence import evidence_of, rows
from tools.shared.formats import Formats

PROBES = ("13 tokens", "5 tokens after 7")

RAISED = Raised(
    (
        Port("ids", "token-ids", "they choose rows of @table", "i64", ("batch", "seq")),
        Port("past.0.key", "history", "attention fits with it", "f32", ("batch", 2, "past", 16)),
        Port("past.0.value", "history", "attention fits with it", "f32", ("batch", 2, "past", 16)),
    ),
    (Port("scores", "logits", "a number for each row of the embedding", "f32", ("batch", "seq", 320)),),
    (
        Region("attention", "a", 80, "4 heads of 16 on 2", {"heads": 4}, 2e-7, PROBES),
        Region("norm", "n", 7, "RMSNorm of 64", {}, 0.0, ("values of size 1",)),
        Region("attention", "b", 80, "4 heads of 16 on 2", {"heads": 4}, 8e-7, PROBES),
        Region("attention", "c", 80, "4 heads of 16 on 2, window 9", {"heads": 4}, 1e-7, PROBES),
    ),
)


def test_what_is_alike_is_one_row():
    assert list(rows(RAISED)) == [
        ("takes", "ids i64[batch, seq]: token ids; they choose rows of @table"),
        ("takes", "past.0.key f32[batch, 2, past, 16] and 1 more: history; attention fits with it"),
        ("gives", "scores f32[batch, seq, 320]: logits; a number for each row of the embedding"),
        ("found", "2 x attention: 4 heads of 16 on 2; difference at most 8.0e-07; probed with 13 tokens, 5 tokens after 7"),
        ("found", "1 x norm: RMSNorm of 64; difference at most 0.0e+00; probed with values of size 1"),
        ("found", "1 x attention: 4 heads of 16 on 2, window 9; difference at most 1.0e-07; probed with 13 tokens, 5 tokens "
         "after 7"),
    ]  # fmt: skip


def test_a_graph_that_is_no_language_model_has_none(tmp_path):
    from tests.support.lost.models import lost_file

    formats = Formats()
    assert evidence_of(formats.read(str(lost_file(tmp_path, "whole"))), formats) is None


@pytest.mark.mnn
def test_the_commands_show_roles_and_parts_of_a_file_and_of_what_was_compiled_from_it(tmp_path):
    made = compiled(EXAMPLE, tmp_path / "plain", "onnx-fp32", to="onnx") / "model.onnx"
    shutil.copy(EXAMPLE / "tokenizer.json", made.parent)
    text = CliRunner().invoke(main, [str(made)]).stdout
    assert "takes        input_ids i64[1, seq]: token ids; they choose rows of @" in text
    assert "found        4 x attention: 4 heads of 64 on 2, scale 0.125, half rope of 64; difference at most " in text
    of_file = json.loads(CliRunner().invoke(main, [str(made), "--json"]).stdout)["raised"]
    assert [port["kind"] for port in of_file["inputs"]] == ["token-ids"]
    assert {region["kind"] for region in of_file["regions"]} >= {"attention"}
    folder = compiled(made, tmp_path / "out", "int8")
    shown = CliRunner().invoke(main, [str(folder)]).stdout
    assert "takes      input_ids i64[1, seq]: token ids; " in shown and "found      4 x attention: " in shown
    data = json.loads(CliRunner().invoke(main, [str(folder), "--json"]).stdout)["contract"]["raised"]
    for key in ("name", "kind", "evidence"):
        assert [port[key] for port in data["inputs"]] == [port[key] for port in of_file["inputs"]]


def test_what_does_not_fit_is_said(tmp_path):
    """Of a decoder without its embedding nothing can be found."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("MatMul", ["rows", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("MatMul", ["p", "head"], ["logits"]),
    ]
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * (shape[0] * shape[1]))
        for name, shape in (("w", [8, 8]), ("head", [8, 40]))
    ]
    ports = [
        helper.make_tensor_value_info(*item) for item in (("rows", 1, [1, "seq", 8]), ("logits", 1, [1, "seq", 40]))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    formats = Formats()
    found = evidence_of(formats.read(str(path)), formats)
    assert isinstance(found, Diagnostic) and found.code == "P380"
    assert (
        "refused      P380: the model takes the rows of its embedding as 'rows'"
        in CliRunner().invoke(main, [str(path)]).stdout
    )
