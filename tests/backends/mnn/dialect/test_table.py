"""The rows of MNN's operators: they agree with MNN's schema, with the profiles of releases and with each other."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from backends.mnn.dialect import arithmetic
from backends.mnn.dialect.table import DEFINITIONS, FORM_OF, FORMS, READ, ROWS, WRITTEN, fused_forms
from backends.mnn.lower.fit import fit
from backends.mnn.read.net_file import BINARY, OPS, PARAMETERS, UNARY
from backends.mnn.target.releases import PROFILES, target
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_layout import Layout
from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.graph.graph import Graph
from ir.ops.registry import OPERATORS
from ir.ops.roles import ROLES
from ir.tensor.inline import InlineTensor
from ir.verify.structure import structure

UNWRITTEN = {"mnn.DynamicQuantizeRows", "mnn.ExpertRows"}
"""Operators that stand for what the runtime does on its own, or inside of another one, which no file holds."""


def graph_of(op: str, attrs: dict, inputs: int, shape=(2, 3)) -> Graph:
    graph = Graph("main")
    type_ = TensorType(F32, shape)
    operands = [graph.add_input(f"x{index}", type_) for index in range(inputs)]
    node = graph.add(op, operands, attrs, outputs=["y"], types=[type_])
    graph.set_outputs([node.output])
    return graph


def test_rows_speak_of_operators_and_parameters_of_the_schema():
    named = {row.type for row in ROWS if row.type}
    assert named <= set(OPS.values()), named - set(OPS.values())
    assert {row.parameter for row in ROWS} <= set(PARAMETERS)
    assert {row.format for row in ROWS} == {"NCHW", "NC4HW4"}


def test_no_operator_stands_in_two_rows():
    assert [name for name, count in Counter(item.name for item in DEFINITIONS).items() if count > 1] == []
    readers = Counter(row.type for row in ROWS if row.decode is not None)
    assert [kind for kind, count in readers.items() if count > 1] == []
    assert all(OPERATORS[item.name] is item for item in DEFINITIONS)


def test_every_operator_of_the_ir_is_written_and_read_again_or_stands_for_a_part():
    assert {item.name for item in DEFINITIONS} - set(WRITTEN) == UNWRITTEN
    assert {name for name, row in WRITTEN.items() if row.type not in READ} == set()


def test_functions_have_numbers_in_the_schema():
    assert set(arithmetic.UNARY) <= set(UNARY.values())
    assert {*arithmetic.BINARY, *arithmetic.COMPARE} <= set(BINARY.values())


def test_operators_are_drawn_as_a_known_kind():
    roles = {item.name: item.role for item in DEFINITIONS}
    assert set(roles.values()) <= {*ROLES, "math"}
    assert roles["mnn.PackedNorm"] == roles["mnn.LayerNorm"] == "norm" and roles["mnn.RoPE"] == "attention"


@pytest.mark.parametrize("form", FORMS)
def test_forms_are_those_of_the_operators_that_need_a_release(form):
    rows = [row for row in ROWS if row.form == form]
    assert rows and all(row.reads is not None and FORM_OF[row.definition.name] == form for row in rows)
    for release in PROFILES.values():
        assert len({row.reads(release, {}) for row in rows}) == 1
        assert (form in fused_forms([release])) == rows[0].reads(release, {})


def test_operators_that_a_release_lacks_are_rewritten_as_their_rows_say():
    graph = graph_of("mnn.Unary", {"kind": "SILU"}, 1)
    assert fit(graph, target("3.6.1")) == fit(graph, target("portable")) == 0
    assert fit(graph, target("3.0.0")) == 1
    assert [(node.op, node.attrs["kind"]) for node in graph.nodes] == [("mnn.Unary", "SIGMOID"), ("mnn.Binary", "MUL")]
    assert list(structure(graph)) == []


def test_operators_without_a_simpler_form_are_refused():
    graph = graph_of("mnn.MulSilu", {}, 2)
    with pytest.raises(LadingError) as caught:
        fit(graph, target("portable"))
    assert caught.value.code == "B696" and "mul-silu" in str(caught.value)
    assert fit(graph, target("3.6.1")) == 0


WHOLE = {
    "mnn.Reshape": ({"dims": (3, 2)}, 1, {"dims": [3, 2], "dimType": "NCHW"}),
    "mnn.Squeeze": ({"axes": (0,)}, 1, {"squeezeDims": [0]}),
    "mnn.ConvertTensor": ({"source": "NCHW", "dest": "NC4HW4"}, 1, {"source": "NCHW", "dest": "NC4HW4"}),
    "mnn.Concat": ({"axis": 1}, 2, {"axis": 1}),
    "mnn.MulSilu": ({}, 2, {"opType": "MUL_SILU", "T": "DT_FLOAT", "activationType": 0}),
    "mnn.Reduction": (
        {"kind": "SUM", "axes": (1,), "keep_dims": 1}, 1,
        {"operation": "SUM", "dim": [1], "coeff": 0.0, "keepDims": True, "dType": "DT_FLOAT"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", WHOLE)
def test_operators_are_spelled_as_in_the_schema(op):
    attrs, inputs, wanted = WHOLE[op]
    net = build_net(graph_of(op, attrs, inputs), Layout())
    *declared, written = net["oplists"]
    assert [item["type"] for item in declared] == ["Input"] * inputs
    assert (written["type"], written["main_type"]) == (WRITTEN[op].type, WRITTEN[op].parameter)
    assert written["main"] == wanted and written["outputIndexes"] == [inputs]
    assert json.loads(json.dumps(net)) == net


def test_an_operator_without_parameters_is_written_without():
    net = build_net(graph_of("mnn.Select", {}, 3), Layout())
    assert net["oplists"][-1]["main_type"] == "NONE" and "main" not in net["oplists"][-1]


def test_constants_stand_before_what_reads_them():
    graph = graph_of("mnn.Unary", {"kind": "ABS"}, 1)
    (node,) = graph.nodes
    graph.set_input(node, 0, graph.add_const("c", InlineTensor(np.array([[1, 2, 3]], np.int64))))
    const = next(op for op in build_net(graph, Layout())["oplists"] if op["type"] == "Const")
    assert const["main"] == {"dims": [1, 3], "dataFormat": "NCHW", "dataType": "DT_INT32", "int32s": [1, 2, 3]}
