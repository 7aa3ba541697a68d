"""ONNX's own test cases of old versions, as graphs of the newest: each computes what it did."""

from __future__ import annotations

import onnx

from tests.support.onnx_cases import run_all
from tools.conformance.cases import Case, collect

OLD = 13
"""Cases of older versions than this are brought to the newest."""


def opset(case: Case) -> int:
    """The version of ONNX's operators; that of none for a model that has none of them."""
    model = onnx.ModelProto.FromString(case.model)
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), OLD)


def test_old_cases_compute_the_same_as_graphs_of_the_newest_version():
    cases = [case for case in collect() if isinstance(case, Case) and case.kind != "light" and opset(case) < OLD]
    assert len(cases) > 150 and {opset(case) for case in cases} >= {1, 6, 9, 11}
    outcomes = list(run_all(cases, "infer-types,upgrade-opset{to=24},infer-types"))
    assert len(outcomes) == len(cases)
    assert not [(outcome.key, outcome.trouble) for outcome in outcomes if outcome.trouble]
