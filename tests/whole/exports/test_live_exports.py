"""The makers of `tests.support.exports` make what they say: onnxruntime agrees with torch, changes change numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.support.exports import Export, export, run
from tests.support.exports.mutations import MUTATIONS, Nothing, one_weight, window
from tests.support.exports.variants import dangling, frozen, renamed_value, undeclared, with_rows, with_temperature

FULL = {"mask": True, "positions": True, "history": True}

SCRIPT = [
    ("qwen2", FULL),
    ("qwen2-tied", {**FULL, "opset": 14, "rows": "gather"}),
    ("qwen3", {**FULL, "embeddings": True}),
    ("llama", {"opset": 15, "positions": True, "rows": "slice"}),
    ("llama3", {}),
    ("mistral", {**FULL, "opset": 18, "attention": "sdpa"}),
    ("gemma", {"mask": True, "positions": True, "rows": "last"}),
    ("gemma2", FULL),
    ("gemma3", {"mask": True, "present": True}),
    ("phi", {**FULL, "batch": False}),
    ("phi3", {"mask": True}),
    ("stablelm", {**FULL, "half": True}),
]
DYNAMO = [
    ("glm", {"opset": 20, "mask": True, "history": True}),
    ("qwen3", {"opset": 24, "attention": "sdpa", **FULL}),
    ("cohere", {"opset": 19, "positions": True}),
    ("mistral", {"opset": 18, "batch": False}),
]
SIZES = [{"seq": 5}, {"seq": 25}, {"batch": 2, "seq": 9}, {"past": 4, "seq": 1}, {"batch": 2, "past": 13, "seq": 12}]


GENAI = [
    ("qwen2", {}),
    ("qwen2-tied", {"precision": "int4"}),
    ("qwen3", {"exclude_embeds": "true"}),
    ("llama", {"prune_lm_head": "true"}),
    ("llama3", {"precision": "fp16"}),
    ("gemma2", {"windowed_kv_cache": "false"}),
    ("phi3", {"precision": "int4", "use_qdq": "true"}),
]
CONTRIB = [("qwen2", "packed"), ("llama3", "separate"), ("mistral", "rotary"), ("llama", "multi-head")]


def distance(found: np.ndarray, right: np.ndarray) -> float:
    """The largest difference, as a part of the largest value."""
    assert found.shape == right.shape
    return float(np.abs(found.astype(np.float64) - right).max() / np.abs(right.astype(np.float64)).max())


def sizes_of(made: Export) -> list[dict[str, int]]:
    """The sizes that an export can be fed with; attention of onnxruntime's own takes several tokens after others for a
    single sequence only."""
    found = [size for size in SIZES if made.options.batch or size.get("batch", 1) == 1]
    found = [size for size in found if made.options.history or not size.get("past")]
    own = made.exporter in ("genai", "contrib")
    return [size for size in found if not (own and size.get("past") and size.get("batch", 1) > 1)]


@pytest.mark.parametrize(
    ("exporter", "family", "options"),
    [
        *(("script", *row) for row in SCRIPT),
        *(("dynamo", *row) for row in DYNAMO),
        *(("contrib", family, {"style": style}) for family, style in CONTRIB),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_onnxruntime_gives_what_torch_gives(exporter, family, options):
    made = export(family, exporter, **options)
    if exporter != "contrib":  # some of its operators stand in the default domain, as the builder of genai has them
        onnx.checker.check_model(made.model())
    assert dangling(made.model()) == []
    for size in sizes_of(made):
        feeds = made.feeds(**size)
        found, right = run(made.path, feeds), made.reference(feeds)
        assert found.keys() == right.keys()
        bound = 1e-2 if made.options.half else 1e-5
        assert max(distance(found[name], right[name]) for name in right) < bound, size


@pytest.mark.parametrize(("family", "build"), GENAI, ids=lambda item: str(item))
def test_the_builder_of_onnxruntime_genai_gives_what_torch_gives(family, build):
    made = export(family, "genai", **build)
    assert any(node.domain == "com.microsoft" for node in made.model().graph.node)
    # Its form for halves repeats keys in a way that takes no history.
    sizes = [size for size in sizes_of(made) if not (made.options.half and size.get("past"))]
    for size in sizes:
        feeds = made.feeds(**size)
        found = run(made.path, feeds)
        right = made.reference(feeds) if made.exact else export(family, "genai").reference(feeds)
        bound = 1e-5 if made.exact and not made.options.half else 1e-2 if made.exact else 0.8
        assert max(distance(found[name], right[name]) for name in right) < bound, size


def test_the_form_of_the_exporter_of_mnn_has_its_operators():
    counts = {}
    for family, fused in (("qwen3", True), ("llama3", False)):
        model = export(family, "llm-exporter", fused=fused).model()
        counts[family] = [(node.domain, node.op_type) for node in model.graph.node if node.domain]
        assert [item.name for item in model.graph.input] == [
            "input_ids",
            "attention_mask",
            "position_ids",
            "logits_index",
        ]
        assert dangling(model) == []
    assert counts["qwen3"] == [("LlmExporter", "FusedRoPE"), ("LlmExporter", "FusedAttention")] * 2
    assert counts["llama3"] == [("LlmExporter", "FusedAttention")] * 2


def test_an_export_is_made_once_for_the_same_options():
    first = export("llama3", "script")
    assert export("llama3", "script") is first
    assert export("llama3", "script", opset=18).path != first.path


MUTATED = [("qwen2", "script", FULL), ("mistral", "script", SCRIPT[5][1]), ("qwen3", "dynamo", DYNAMO[1][1])]


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize(("family", "exporter", "options"), MUTATED, ids=lambda item: str(item)[:7])
def test_a_mutation_gives_a_model_that_runs_and_says_something_else(family, exporter, options, name):
    made = export(family, exporter, **options)
    feeds = made.feeds(seq=20)
    changed = MUTATIONS[name](made.model())
    onnx.checker.check_model(changed)
    found, before = run(changed, feeds)["logits"], run(made.path, feeds)["logits"]
    assert distance(found, before) > (1e-4 if name == "epsilon" else 1e-2)


def test_another_window_changes_the_rows_that_reach_further_back():
    made = export("mistral", "script", **SCRIPT[5][1])
    feeds = made.feeds(seq=20)
    found, before = run(window(made.model(), 8, 5), feeds)["logits"], run(made.path, feeds)["logits"]
    changed = np.abs(found - before).max(-1)[0] > 1e-2
    assert changed.tolist() == [False] * 5 + [True] * 15


def test_looking_ahead_changes_every_row_but_the_last_of_one():
    made = export("qwen2", "script", **FULL)
    feeds = made.feeds(seq=1)
    changed = MUTATIONS["look ahead"](made.model())
    assert distance(run(changed, feeds)["logits"], run(made.path, feeds)["logits"]) < 1e-6


def test_a_moved_weight_changes_numbers_only():
    made = export("qwen2", "script", **FULL)
    feeds = made.feeds(seq=20)
    changed = one_weight(made.model())
    assert [node.op_type for node in changed.graph.node] == [node.op_type for node in made.model().graph.node]
    assert distance(run(changed, feeds)["logits"], run(made.path, feeds)["logits"]) > 1e-2


def test_a_mutation_that_finds_no_place_says_so():
    made = export("qwen2", "script", **FULL)
    with pytest.raises(Nothing, match="a window of 8"):
        window(made.model(), 8, 5)


@pytest.mark.parametrize("at", ["hidden", "logits"])
@pytest.mark.parametrize("how", ["slice", "gather", "scalar"])
@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_chosen_rows_are_those_of_the_whole_model(how, at, kind):
    made = export("qwen2", "script", **FULL)
    chosen = with_rows(made.model(), how, at=at, kind=kind)
    onnx.checker.check_model(chosen)
    feeds = made.feeds(past=2, seq=9)
    rows = run(made.path, feeds)["logits"]
    for row in (0, 4, -1):
        index = np.array(row, kind) if how == "scalar" else np.array([row], kind)
        right = rows[:, row:] if how == "slice" else rows[:, [row]]
        assert distance(run(chosen, {**feeds, "logits_index": index})["logits"], right) < 1e-6


def test_the_states_of_an_input():
    made = export("llama3", "script")
    declared = with_rows(made.model(), "gather")
    feeds = made.feeds(seq=6)
    last = run(made.path, feeds)["logits"][:, -1:]
    assert dangling(undeclared(declared, "logits_index")) == ["logits_index"]
    assert dangling(renamed_value(undeclared(declared, "logits_index"), "logits_index", "last")) == ["last"]
    for name in (None, "onnx::Gather_7"):
        constant = frozen(declared, "logits_index", np.array([-1]), renamed=name)
        assert dangling(constant) == []
        assert distance(run(constant, feeds)["logits"], last) < 1e-6
    with pytest.raises(ValueError, match="not all"):
        undeclared(declared, "logits_index", "no such input")


def test_a_temperature_divides_logits():
    made = export("llama3", "script")
    cooled = with_temperature(made.model())
    feeds = made.feeds(seq=6)
    found = run(cooled, {**feeds, "temperature": np.array(4.0, np.float32)})["logits"]
    assert distance(found * 4, run(made.path, feeds)["logits"]) < 1e-6
    assert dangling(undeclared(cooled, "temperature")) == ["temperature"]
