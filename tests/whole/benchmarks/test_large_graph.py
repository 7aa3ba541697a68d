"""The benchmark of large graphs runs, and its decoders are as large as it says."""

from __future__ import annotations

import json

from benchmarks import large_graph


def test_every_stage_is_measured_at_three_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LADING_CACHE", str(tmp_path / "kept"))
    large_graph.main(["--layers", "4", "--repeat", "1", "--json", str(tmp_path / "record.json")])
    sizes = json.loads((tmp_path / "record.json").read_text())["sizes"]
    assert [one["layers"] for one in sizes] == [1, 2, 4]
    assert [one["weights"] for one in sizes] == [79 * layers + 2 for layers in (1, 2, 4)]
    nodes = [one["nodes"] for one in sizes]
    assert nodes[2] - nodes[1] == 2 * (nodes[1] - nodes[0]) > 200
    for one in sizes:
        assert set(one["us_per_node"]) == set(one["seconds"]) and all(value > 0 for value in one["seconds"].values())
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in sizes[0]["seconds"])
