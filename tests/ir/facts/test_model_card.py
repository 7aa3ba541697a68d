"""The card of a model: what is left out, what is said of the context, and that it is a fact like others."""

from __future__ import annotations

import pytest

from ir.base.diag import Diagnostic
from ir.facts.model_card import ModelCard, RopeCard, SourceFile
from ir.graph.facts import build
from ir.graph.graph import Graph
from ir.text.parser import parse
from ir.text.printer import print_graph

ROPE = RopeCard("linear", 1e4, 32, 2.0, 1.0, 64, (True, False))
FULL = ModelCard(
    title="some",
    family="qwen2",
    layers=2,
    context=128,
    tied=False,
    windows=(None, 16),
    rope=ROPE,
    dtypes=("bf16",),
    sources={"a.onnx": SourceFile(3, "0" * 64), "b": SourceFile(4, "1" * 64, "header")},
    sampling={"do_sample": True, "top_p": 0.5},
    warnings=(Diagnostic("F560", "left out", severity="warning"),),
)


@pytest.mark.parametrize("card", [ModelCard(), FULL], ids=["empty", "full"])
def test_data_and_text_give_the_card_again(card):
    assert ModelCard.from_data(card.to_data()) == build("model-card", card.to_data()) == card
    graph = Graph("g")
    graph.set_fact(card.name, card)
    assert ModelCard.of(parse(print_graph(graph))) == card


def test_what_is_not_known_is_not_written():
    assert ModelCard().to_data() == {}
    assert ModelCard(tied=False).to_data() == {"tied": False}


@pytest.mark.parametrize(
    ("context", "steady", "wanted"), [(None, None, None), (128, None, 128), (128, 64, 64), (32, 64, 32), (None, 64, 64)]
)
def test_the_steady_context(context, steady, wanted):
    rope = RopeCard("dynamic", 1e4, 32, 2.0, 1.0, steady)
    assert ModelCard(context=context, rope=rope).steady_context == wanted
