"""Roles and parts of an exported decoder as people and programs see them."""

from __future__ import annotations

from ir.facts.raised import Port, Raised, Region
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
