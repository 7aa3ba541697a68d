"""What was found in a graph that somebody else exported is printed and parsed with it."""

from __future__ import annotations

from ir.facts.raised import Port, Raised, Region
from ir.graph.graph import Graph
from ir.text.parser import parse
from ir.text.printer import print_graph


def test_the_evidence_survives_the_text_form():
    ids = Port("input_ids", "token-ids", "it chooses rows of a constant table", "int64", (1, "seq"))
    logits = Port("logits", "logits", "the only output", "float32", (1, "seq", 256))
    found = {"heads": 4, "kv_heads": 2, "scale": 0.125, "window": None, "half": True}
    region = Region("attention", "/attn/MatMul", 31, "4 heads of 16 on 2", found, 3e-7, ("13 tokens", "5 after 7"))
    graph = Graph("g")
    graph.set_fact("raised", Raised((ids,), (logits,), (region,)))
    again = parse(print_graph(graph))
    assert again.fact(Raised) == graph.fact(Raised)
    assert again.required_fact(Raised).port("token-ids") == ids and again.required_fact(Raised).port("history") is None
