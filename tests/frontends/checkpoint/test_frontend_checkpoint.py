"""Checkpoints to graphs: logits against the reference implementation, the form of the graph, matching of tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.evaluate.evaluator import evaluate
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph
from ir.text.parser import parse
from ir.text.printer import print_graph
from tests.support.checkpoints import (
    BASE,
    FAMILIES,
    hot_tensors,
    make_checkpoint,
    reference_logits,
    write_safetensors,
    write_weights,
)

TOLERANCE = 2e-4
"""Largest accepted error of a logit; the logits of these models reach 20 to 40."""

HALF = 8  # pairs of a head of the base configuration
SHORT = np.linspace(1.0, 1.5, HALF).tolist()
LONG = np.linspace(1.0, 4.0, HALF).tolist()


def token_ids(length: int, vocab: int = BASE["vocab_size"]) -> np.ndarray:
    return np.random.default_rng(length).integers(0, vocab, (1, length))


def logits(graph: Graph, ids: np.ndarray) -> np.ndarray:
    return evaluate(graph, {"input_ids": ids})["logits"]


def assert_same_logits(folder: Path, *lengths: int) -> Graph:
    graph = load(folder)
    for length in lengths:
        ids = token_ids(length, ModelCard.of(graph).vocab_size)
        expected = reference_logits(folder, ids)
        assert 10 < np.abs(expected).max() < 60
        np.testing.assert_allclose(logits(graph, ids), expected, rtol=0, atol=TOLERANCE)
    return graph


# ---- logits ----


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families(tmp_path: Path, family: str, tied: bool) -> None:
    graph = assert_same_logits(make_checkpoint(tmp_path, family, tie_word_embeddings=tied), 1, 7, 60)
    assert ModelCard.of(graph).tied is tied


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32", "f64"])
def test_stored_types(tmp_path: Path, dtype: str) -> None:
    graph = assert_same_logits(make_checkpoint(tmp_path, "qwen2", dtype=dtype, seed=1), 20)
    assert ModelCard.of(graph).dtypes == (dtype,)


SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "odd sizes": (
        "qwen2",
        {"hidden_size": 90, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 77},
    ),
    "one layer": ("llama", {"num_hidden_layers": 1}),
    "as many key heads as heads": ("llama", {"num_key_value_heads": 4}),
    "one key head": ("mistral", {"num_key_value_heads": 1}),
    "wide heads": ("llama", {"head_dim": 40}),
    "narrow heads": ("mistral", {"head_dim": 10}),
    "wide vocabulary": (
        "llama",
        {"vocab_size": 70001, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "attention biases": ("qwen3", {"attention_bias": True}),
    "gelu": ("llama", {"hidden_act": "gelu"}),
    "gelu by tanh": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "new gelu": ("llama", {"hidden_act": "gelu_new"}),
    "relu": ("llama", {"hidden_act": "relu"}),
}


@pytest.mark.parametrize("title", SHAPES)
def test_shapes_biases_and_activations(tmp_path: Path, title: str) -> None:
    family, config = SHAPES[title]
    assert_same_logits(make_checkpoint(tmp_path, family, **config), 30)


ROPES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "linear": ({"factor": 4.0}, (20, 64, 150)),
    "dynamic": ({"factor": 3.0}, (20, 63, 64, 65, 66, 150)),
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": 32}, (20, 33, 120)),
    "yarn with mscale": (
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "mscale": 1.0,
            "mscale_all_dim": 0.7,
            "truncate": False,
        },
        (33, 120),
    ),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
        (20, 33, 64),
    ),
    "longrope": (
        {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 32},
        (20, 31, 32, 33, 34, 64),
    ),
}


@pytest.mark.parametrize("title", ROPES)
def test_ropes(tmp_path: Path, title: str) -> None:
    record, lengths = ROPES[title]
    rope = {"rope_type": title, "rope_theta": 5000.0, **record}
    folder = make_checkpoint(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope)
    graph = assert_same_logits(folder, *lengths)
    assert graph.dims["seq"].high >= max(lengths)


def test_rope_beyond_the_threshold_differs_from_the_one_below(tmp_path: Path) -> None:
    """The comparison above would be empty if the two tables gave the same logits."""
    rope = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 32}
    folder = make_checkpoint(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope)
    graph = load(folder)
    below, beyond = logits(graph, token_ids(64)[:, :32]), logits(graph, token_ids(64)[:, :33])
    assert np.abs(below - beyond[:, :32]).max() > 1


def test_table_that_cannot_change_is_constant(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64}
    graph = load(make_checkpoint(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope))
    assert not any(node.op in ("ReduceMax", "Where") for node in graph.nodes)


WINDOWS: dict[str, tuple[str, dict[str, Any], list[int | None]]] = {
    "all layers": ("mistral", {"sliding_window": 16}, [16, 16]),
    "upper layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "num_hidden_layers": 3},
        [None, 9, 9],
    ),
    "listed layers": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 9,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        [None, 9, None],
    ),
    "window of one token": ("mistral", {"sliding_window": 1}, [1, 1]),
}


@pytest.mark.parametrize("title", WINDOWS)
def test_windows(tmp_path: Path, title: str) -> None:
    family, config, windows = WINDOWS[title]
    graph = assert_same_logits(make_checkpoint(tmp_path, family, **config), 9, 10, 17, 60)
    assert list(ModelCard.of(graph).windows) == windows
    masks = [node for node in graph.nodes if node.op == "lading.SlidingWindowMask"]
    assert len(masks) == 1, "layers with the same window share the mask"


@pytest.mark.parametrize(("window", "masks"), [(63, 1), (64, 0), (65, 0)])
def test_window_as_long_as_the_context_needs_no_mask(tmp_path: Path, window: int, masks: int) -> None:
    folder = make_checkpoint(tmp_path, "mistral", sliding_window=window, max_position_embeddings=64)
    graph = assert_same_logits(folder, 64)
    assert sum(node.op == "lading.SlidingWindowMask" for node in graph.nodes) == masks


# ---- the graph ----


def test_graph_has_the_promised_form(tmp_path: Path) -> None:
    graph = load(make_checkpoint(tmp_path, "qwen3", num_hidden_layers=3, tie_word_embeddings=True))
    assert [str(value.type) for value in graph.inputs] == ["i64[1, seq]"]
    assert [(value.name, str(value.type)) for value in graph.outputs] == [("logits", "f32[1, seq, 320]")]
    assert (graph.dims["seq"].low, graph.dims["seq"].high) == (1, 512)
    assert str(graph.value("positions").type) == "i64[1, seq]"
    assert all(isinstance(value.type, TensorType) for node in graph.nodes for value in node.outputs)
    query = graph.consts["model.layers.1.self_attn.q_proj.weight"]
    assert str(query.type) == "f32[64, 96]"
    assert query.loc == "model.safetensors:model.layers.1.self_attn.q_proj.weight"
    head = graph.consts["lm_head.weight"].const.recipe()
    assert head[0] == "transposed" and head[1][0] is graph.consts["model.embed_tokens.weight"].const


@pytest.mark.parametrize(("family", "per_layer"), [("llama", 16), ("mistral", 16), ("qwen2", 19), ("qwen3", 22)])
def test_layers_are_small(tmp_path: Path, family: str, per_layer: int) -> None:
    graph = load(make_checkpoint(tmp_path, family, num_hidden_layers=3))
    assert len(graph.nodes) == 3 * per_layer + 12


def test_recorded_types_are_the_inferred_ones(tmp_path: Path) -> None:
    from ir.infer.engine import infer_types

    rope = {"rope_type": "dynamic", "factor": 2.0}
    graph = load(make_checkpoint(tmp_path, "mistral", sliding_window=5, rope_parameters=rope))
    recorded = {value.name: value.type for node in graph.nodes for value in node.outputs}
    assert infer_types(graph) == []
    assert {value.name: value.type for node in graph.nodes for value in node.outputs} == recorded


def test_module_names_mean_module_outputs(tmp_path: Path) -> None:
    """Values named like modules are what the modules of the reference return."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_checkpoint(tmp_path, "qwen2", dtype="f32")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    seen: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen[name] = output.numpy()

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(keep(name))
    ids = token_ids(12)
    with torch.no_grad():
        model(torch.from_numpy(ids))
    graph = load(folder)
    named = [value for node in graph.nodes for value in node.outputs if value.name in seen]
    assert len(named) > 20
    graph.set_outputs(named)
    for name, array in evaluate(graph, {"input_ids": ids}).items():
        np.testing.assert_allclose(array, seen[name], rtol=0, atol=1e-3 if name == "lm_head" else 1e-4, err_msg=name)


def test_the_card_is_complete_and_survives_the_text_form(tmp_path: Path) -> None:
    rope = {"type": "linear", "factor": 2, "unheard_of": 1}
    folder = make_checkpoint(tmp_path / "some-model", "qwen2", shards=2, rope_scaling=rope)
    graph = load(folder)
    card = ModelCard.of(graph)
    assert ModelCard.from_data(json.loads(json.dumps(card.to_data()))) == card
    assert ModelCard.of(parse(print_graph(graph))) == card
    assert card.title == "some-model" and card.folder == str(folder)
    assert card.rope.kind == "linear"
    assert [item.code for item in card.warnings] == ["F562"]
    assert card.unread["unknown"] == ("rope_scaling.unheard_of",)
    assert sorted(card.sources) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert card.sources["model-00001-of-00002.safetensors"].bytes > 0 and len(card.config_digest) == 64
    assert graph.metadata == {}


def test_a_graph_of_nobody_has_an_empty_card() -> None:
    assert ModelCard.of(Graph("nobody")) == ModelCard(title="nobody")


def test_loading_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ir.tensor.files import FileTensor

    def fail(self: FileTensor, start: int, stop: int) -> None:
        raise AssertionError(f"{self.loc} was read")

    folder = make_checkpoint(tmp_path, "llama")
    monkeypatch.setattr(FileTensor, "rows", fail)
    monkeypatch.setattr(FileTensor, "elements", fail)
    load(folder)


def test_checkpoints_of_a_seed_are_always_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    one, two = (make_checkpoint(tmp_path / name, "qwen3", seed=3) for name in ("one", "two"))
    for file in sorted(path.name for path in one.iterdir()):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    other = make_checkpoint(tmp_path / "other", "qwen3", seed=4)
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(one)
    text = "kalo mi ship; ünknown \U0001f6a2"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert max(tokenizer.get_vocab().values()) < BASE["vocab_size"]
    assert "<|im_start|>user" in tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


# ---- which tensor is which ----


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def rewrite(folder: Path, change: Any) -> dict[str, np.ndarray]:
    """Write the weights of a checkpoint again after a change to the dictionary of tensors."""
    tensors = hot_tensors(config_of(folder), 0, "f32")
    tensors = change(tensors) or tensors
    write_weights(folder, tensors)
    return tensors


@pytest.mark.parametrize("prefix", ["", "model.language_model.", "language_model.model."])
def test_other_prefixes(tmp_path: Path, prefix: str) -> None:
    plain = load(make_checkpoint(tmp_path / "plain", "qwen2", dtype="f32"))
    folder = make_checkpoint(tmp_path / "other", "qwen2", dtype="f32")
    rewrite(folder, lambda tensors: {name.replace("model.", prefix, 1): array for name, array in tensors.items()})
    graph = load(folder)
    assert f"{prefix}layers.0.self_attn.q_proj" in {node.output.name for node in graph.nodes}
    np.testing.assert_array_equal(logits(graph, token_ids(9)), logits(plain, token_ids(9)))


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    plain = load(make_checkpoint(tmp_path / "plain", "llama"))
    shards = load(make_checkpoint(tmp_path / "shards", "llama", shards=4))
    np.testing.assert_array_equal(logits(shards, token_ids(9)), logits(plain, token_ids(9)))


def test_stored_head_of_a_tied_model(tmp_path: Path) -> None:
    """Equal copies are one matrix, different ones are two, whatever the configuration says."""
    same = make_checkpoint(tmp_path / "same", "llama", dtype="f32", tie_word_embeddings=True)
    rewrite(same, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}))
    assert ModelCard.of(assert_same_logits(same, 12)).tied is True

    other = make_checkpoint(tmp_path / "other", "llama", dtype="f32", tie_word_embeddings=True)
    rewrite(other, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"][::-1]}))
    assert ModelCard.of(assert_same_logits(other, 12)).tied is False


def test_only_the_head_of_a_tied_model_is_stored(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", dtype="f32", tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert ModelCard.of(assert_same_logits(folder, 12)).tied is True


def test_needless_tensors_are_left_out(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", dtype="f32")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    rewrite(folder, lambda tensors: tensors.update(buffer))
    assert_same_logits(folder, 12)


def refused(folder: Path) -> LadingError:
    with pytest.raises(LadingError) as caught:
        load(folder)
    return caught.value


def test_missing_tensors_are_all_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen2")
    gone = ("model.layers.0.self_attn.q_proj.bias", "model.norm.weight")
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in gone] and None)
    error = refused(folder)
    assert {item.code for item in error.diagnostics} == {"F550"}
    assert all(any(name in item.message for item in error.diagnostics) for name in gone)


def test_misnamed_tensor_suggests_the_right_one(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    right, wrong = "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.downproj.weight"
    rewrite(folder, lambda tensors: tensors.update({wrong: tensors.pop(right)}))
    missing, extra = refused(folder).diagnostics
    assert (missing.code, extra.code) == ("F550", "F551")
    assert f"did you mean {wrong!r}?" in missing.hint
    assert f"did you mean {right!r}?" in extra.hint


def test_many_problems_are_counted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama", num_hidden_layers=3)
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    error = refused(folder)
    assert {item.code for item in error.diagnostics} == {"F551"}
    assert "6 more tensors" in error.diagnostics[-1].message
    assert "num_hidden_layers" in error.diagnostics[0].hint


def test_missing_head(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight") is None)
    error = refused(folder)
    assert error.code == "F550"
    assert "tie_word_embeddings" in error.diagnostics[0].hint


@pytest.mark.parametrize("rows", [319, 321])
def test_embedding_of_another_size(tmp_path: Path, rows: int) -> None:
    """The reference refuses both; more rows than the vocabulary are no exception."""
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda t: t.update({"model.embed_tokens.weight": np.zeros((rows, 64), np.float32)}))
    error = refused(folder)
    assert error.code == "F552"
    assert f"[{rows}, 64]" in str(error) and "[320, 64]" in str(error)
    with pytest.raises(RuntimeError, match="mismatch"):
        reference_logits(folder, token_ids(3))


def test_shape_of_another_rank(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda t: t.update({"model.norm.weight": np.zeros((64, 1), np.float32)}))
    assert refused(folder).code == "F552"


def test_integer_weights(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    rewrite(folder, lambda t: t.update({name: np.zeros((64, 64), np.int8)}))
    error = refused(folder)
    assert error.code == "F553"
    assert name in str(error) and "i8" in str(error)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_unrecognisable_names(tmp_path: Path, family: str) -> None:
    folder = make_checkpoint(tmp_path, family)
    write_safetensors(folder / "model.safetensors", {"transformer.wte.weight": np.zeros((4, 4), np.float32)})
    error = refused(folder)
    assert error.code == "F554"
    assert "transformer.wte.weight" in error.diagnostics[0].hint


def test_two_decoders_in_one_checkpoint(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda t: t.update({"talker.model.embed_tokens.weight": np.zeros((320, 64), np.float32)}))
    assert refused(folder).code == "F554"


def test_embeddings_of_a_vision_tower_are_not_the_decoders(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "llama")
    rewrite(folder, lambda t: t.update({"visual.embed_tokens.weight": np.zeros((4, 4), np.float32)}))
    error = refused(folder)
    assert [item.code for item in error.diagnostics] == ["F551"]
