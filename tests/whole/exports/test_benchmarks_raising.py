"""The benchmark of raising runs, and every layer of its decoders is found."""

from __future__ import annotations

import json

from benchmarks import raising


def test_every_stage_is_measured_at_three_sizes(tmp_path, capsys):
    raising.main(["--layers", "4", "--repeat", "1", "--json", str(tmp_path / "record.json")])
    sizes = json.loads((tmp_path / "record.json").read_text())["sizes"]
    assert [one["layers"] for one in sizes] == [1, 2, 4]
    nodes, raised = [one["nodes"] for one in sizes], [one["raised"] for one in sizes]
    assert nodes[2] - nodes[1] == 2 * (nodes[1] - nodes[0]) > 400
    assert raised[2] - raised[1] == 2 * (raised[1] - raised[0]) > 30
    for one in sizes:
        assert set(one["us_per_node"]) == set(one["seconds"]) and all(value > 0 for value in one["seconds"].values())
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in sizes[0]["seconds"])
