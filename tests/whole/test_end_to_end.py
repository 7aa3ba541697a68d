"""Checkpoints of every family through the whole compiler, on every MNN release, against transformers in torch."""

from __future__ import annotations

import numpy as np
import pytest

from backends.mnn.read.decoded_weights import MnnModel
from frontends.checkpoint.load import load
from ir.evaluate.evaluator import evaluate
from ir.facts.inputs import DynamicInputs
from passes.framework.manager import PassManager
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import (
    compiled,
    each_release,
    logits_of,
    pieces,
    run_actions,
    torch_greedy,
    torch_logits,
    torch_model,
)
from tools.compile.job import EXAMPLE

BAR = 1e-3
"""Largest allowed difference of a logit from torch."""

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 40,
    "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [2.0 + 0.5 * i for i in range(8)],
}  # fmt: skip

CASES = {
    "qwen2": ("qwen2", {}),
    "qwen2-tied-f32": ("qwen2", {"tie_word_embeddings": True, "dtype": "f32"}),
    "qwen2-f16-sharded": ("qwen2", {"dtype": "f16", "shards": 3}),
    "qwen2-odd": ("qwen2", {"hidden_size": 60, "intermediate_size": 118, "num_attention_heads": 6, "vocab_size": 321}),
    "qwen2-windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-yarn": ("qwen3", {"rope_scaling": YARN}),
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}}),
    "llama-dynamic": (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 40},
    ),
    "llama-llama3": ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": True}),
    "llama-longrope": ("llama", {"rope_scaling": LONG, "max_position_embeddings": 160}),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "qwen2-gelu-tanh": ("qwen2", {"hidden_act": "gelu_pytorch_tanh"}),
    "qwen3-relu": ("qwen3", {"hidden_act": "relu"}),
    "mistral": ("mistral", {"head_dim": 24}),
    "mistral-window": ("mistral", {"sliding_window": 11, "num_key_value_heads": 1}),
}
"""Families, storage types, odd sizes, windows, and every kind of rotary embedding."""

TOKENS = 64


class Case:
    """A checkpoint, its fp32 compilation, token ids, what torch makes of them and what each release made of them."""

    def __init__(self, name: str, folder, **options) -> None:
        family, config = CASES[name]
        source = make_checkpoint(folder / "source", family, seed=3, **config)
        self.model = torch_model(source)
        limit = min(TOKENS, self.model.config.max_position_embeddings)
        self.ids = np.random.default_rng(5).integers(3, config.get("vocab_size", 320), limit)
        self.folder = compiled(source, folder / "out", "fp32", **options)
        self.decoded = min(64, self.model.config.max_position_embeddings - 8)
        self.logits = torch_logits(self.model, self.ids)
        # Where frequencies depend on the length, earlier keys keep the rotation of their time, so only a text within
        # the trained length gives the same in pieces as at once.
        self.within = torch_logits(self.model, self.ids[:40])
        self.greedy = torch_greedy(self.model, self.ids[:8], self.decoded)
        self._runs: dict[str, list[dict]] = {}

    def run(self, version: str) -> list[dict]:
        """One prefill, the same through the cache in pieces, and a greedy decode, in one process."""
        if version not in self._runs:
            ids = self.ids[:40]
            cut = [ids[:13], ids[13:14], ids[14:25], *([token] for token in ids[25:])]
            decode = {"do": "greedy", "prompt": list(map(int, ids[:8])), "tokens": self.decoded}
            self._runs[version] = run_actions(self.folder, version, [pieces(self.ids), pieces(*cut), decode])
        return self._runs[version]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """Each case of `CASES`."""
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("version", each_release())
def test_logits_are_those_of_torch_in_one_prefill(case, version):
    got = logits_of(case.run(version)[0])
    assert np.abs(case.logits).max() > 5
    assert np.abs(got - case.logits).max() <= BAR


@pytest.mark.parametrize("version", each_release())
def test_logits_through_the_cache_are_those_of_one_prefill(case, version):
    got = logits_of(case.run(version)[1])
    assert np.abs(got - case.within).max() <= BAR


@pytest.mark.parametrize("version", each_release())
def test_sixty_four_greedy_tokens_are_those_of_torch(case, version):
    assert case.run(version)[2]["ids"] == case.greedy


@pytest.fixture(scope="module")
def example_logits():
    """Token ids and the example's logits by torch."""
    ids = np.random.default_rng(1).integers(3, 2048, 96)
    return ids, torch_logits(torch_model(EXAMPLE), ids)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example compiled with each named pipeline, made when first asked for."""
    made = {}

    def get(pipeline: str):
        if pipeline not in made:
            made[pipeline] = compiled(EXAMPLE, tmp_path_factory.mktemp("example") / "out", pipeline)
        return made[pipeline]

    return get


@pytest.mark.parametrize("version", each_release())
@pytest.mark.parametrize("pipeline", ["fp32", "fp16"])
def test_float_pipelines_of_the_example_match_torch(example, example_logits, pipeline, version):
    ids, wanted = example_logits
    (result,) = run_actions(example(pipeline), version, [pieces(ids[:50], *([token] for token in ids[50:]))])
    assert np.abs(logits_of(result) - wanted).max() <= BAR


WIDTHS = [
    "int8", "int4", "default", "default{bits=2 block=32}", "default{bits=3}", "default{bits=5 block=32}",
    "default{bits=6 symmetric}", "default{bits=7 block=0}", "default{bits=4 zero=float}", "int8{block=0 symmetric}",
    "default{bits=16 logits-bits=4}", "default{keep=[re:o_proj] embedding-bits=16}",
]  # fmt: skip


@pytest.mark.parametrize("version", each_release())
@pytest.mark.parametrize("pipeline", WIDTHS)
def test_integer_pipelines_compute_what_their_decoded_weights_say(example, pipeline, version):
    ids = np.random.default_rng(2).integers(3, 2048, 40)
    folder = example(pipeline)
    wanted = decoded_reference(folder, pipeline, ids)
    (result,) = run_actions(folder, version, [pieces(ids[:20], *([token] for token in ids[20:]))])
    assert np.abs(logits_of(result) - wanted).max() <= BAR


def decoded_reference(folder, pipeline, ids) -> np.ndarray:
    """Logits of the float graph with every weight replaced by what the independent reader decodes from the files."""
    from ir.tensor.inline import InlineTensor
    from ir.tensor.rearranged import transposed

    model = MnnModel(folder)
    graph = load(EXAMPLE)
    PassManager("infer-types,discover-inputs").run(graph)
    decoded = {name.removesuffix(".conv").removesuffix(".matmul"): model.decode(name) for name in model.linears}
    for node in list(graph.nodes):
        if node.op == "MatMul":
            rows = decoded[node.output.name.removesuffix(".matmul")]
            graph.set_const(node.inputs[1], transposed(InlineTensor(rows)))
    feeds = graph.required_fact(DynamicInputs).feeds(graph, ids)
    feeds["input_ids"] = model.embedding_rows(ids)[:, None]
    return evaluate(graph, feeds)["logits"][0]


@pytest.mark.parametrize("vocabulary", [70_001])
def test_vocabularies_beyond_sixteen_bits(tmp_path, vocabulary):
    source = make_checkpoint(
        tmp_path / "source",
        "qwen2",
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        tie_word_embeddings=True,
    )
    ids = np.array([5, 65_535, 65_536, 70_000, 17, 69_999])
    wanted = torch_logits(torch_model(source), ids)
    version = next(param.values[0] for param in reversed(each_release()) if not param.marks)
    (result,) = run_actions(compiled(source, tmp_path / "fp32", "fp32"), version, [pieces(ids)])
    assert np.abs(logits_of(result) - wanted).max() <= BAR
    (result,) = run_actions(compiled(source, tmp_path / "int8", "int8"), version, [pieces(ids)])
    assert np.abs(logits_of(result) - wanted).max() <= 0.1 * np.abs(wanted).max()


def test_same_input_gives_the_same_bytes(tmp_path):
    left = compiled(EXAMPLE, tmp_path / "a", "default", workers=1)
    right = compiled(EXAMPLE, tmp_path / "b", "default", workers=3)
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
