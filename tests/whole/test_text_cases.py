"""Every pass has text cases in a file of its name, one of them with an error and one in which it changes the graph."""

from __future__ import annotations

import pytest

from passes.framework.registry import built_in_registry
from tests.support.text_cases import FOLDER, cases_of


def cases_for(name: str):
    """The cases of the file that is named after a pass."""
    return cases_of(FOLDER / f"{name.replace('-', '_')}.lading")


@pytest.mark.parametrize("name", sorted(built_in_registry().passes))
def test_every_pass_changes_a_graph_in_one_of_its_cases(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path))
    reports = [case.run(case.graph(FOLDER)) for case in cases_for(name) if case.expect not in (None, "unchanged")]
    assert any(item.name == name and item.changed for report in reports for item in report.passes)


@pytest.mark.parametrize("name", sorted(built_in_registry().passes))
def test_every_pass_leaves_a_graph_alone_or_refuses_it_in_one_of_its_cases(name):
    assert any(case.expect in (None, "unchanged") for case in cases_for(name))
