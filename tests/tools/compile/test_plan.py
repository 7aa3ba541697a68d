"""``compile --plan``: sizes are those of the files that compiling writes, and nothing but headers is read."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from backends.contract import read
from backends.plan import PlannedWeights
from frontends.checkpoint import outline as outlines
from ir.tensor.files import Files
from tests.support.checkpoints import make_checkpoint
from tests.support.families.checkpoints import make as make_family
from tests.support.quantized.checkpoints import quantized_checkpoint
from tests.support.runs import compiled
from tools.compile import plan as plans
from tools.compile.command import main
from tools.compile.job import EXAMPLE, Request
from tools.compile.plan import ModelPlan, plan_model

pytestmark = pytest.mark.mnn

SLIDING = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "num_hidden_layers": 5,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
}


def planned(model: str | Path, pipeline: str | None = None, **options: Any) -> ModelPlan:
    return plan_model(Request(str(model), Path(), pipeline, **options))


CASES = {
    "tied": ("qwen2", {"tie_word_embeddings": True}, "default", {}),
    "untied": ("llama", {}, "int4", {}),
    "norms of heads": ("qwen3", {"tie_word_embeddings": True}, "int8", {}),
    "rows in a file of their own": ("mistral", {}, "default{embedding-bits=32}", {}),
    "exact rows": ("llama", {"dtype": "f32"}, "fp32", {}),
    "halves": ("llama", {}, "fp16", {}),
    "odd widths": ("llama", {"vocab_size": 321}, "default{bits=3 block=32 symmetric}", {}),
    "newest forms": ("qwen2", {}, "default", {"target": "3.6.1"}),
    "calibrated": ("qwen2", {}, "calibrated{block-trade=0}", {}),
    "tuned": ("qwen2", {}, "tuned{block-trade=0}", {}),
    "rules by name": ("qwen2", {}, "default{keep=[*.layers.1.mlp.up_proj.weight]}", {}),
    "two kinds of layers": ("qwen2", SLIDING, "default", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_files_have_the_planned_sizes(case: str, tmp_path: Path) -> None:
    family, keys, pipeline, options = CASES[case]
    source = make_checkpoint(tmp_path / "model", family, **keys)
    plan = planned(source, pipeline, **options)
    assert plan.planned is not None and all(item.exact for item in plan.planned.files.values())
    out = compiled(source, tmp_path / "out", pipeline, **options)
    written = {name: (out / name).stat().st_size for name in plan.planned.files}
    assert {name: item.bytes for name, item in plan.planned.files.items()} == written
    contract = read(out)
    assert plan.card.parameters == contract.model.parameters
    assert sum(item.count for item in plan.planned.weights) == sum(not item.shared_with for item in contract.weights)
    state = contract.signature.state
    assert state is not None
    assert sum(item.per_token for item in plan.planned.caches) == state.bytes_per_token


@pytest.mark.parametrize("pipeline", ["calibrated", "fast", "tuned"])
def test_blocks_that_are_measured_are_planned_as_usual_and_told_as_about(pipeline: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "qwen2")
    plan, exact = planned(source, pipeline).planned, planned(source, f"{pipeline}{{block-trade=0}}").planned
    assert plan is not None and exact is not None
    assert {name: item.bytes for name, item in plan.files.items()} == {
        name: item.bytes for name, item in exact.files.items()
    }
    assert not any(item.exact for item in plan.files.values())
    written = (compiled(source, tmp_path / "out", pipeline) / "llm.mnn.weight").stat().st_size
    assert 0.85 * plan.files["llm.mnn.weight"].bytes < written <= plan.files["llm.mnn.weight"].bytes


@pytest.mark.parametrize(
    ("case", "storage"), [("ct-int4-groups", "4 bits, block 32, symmetric"), ("fp8-blocks", "4 bits, block 64")]
)
def test_quantized_checkpoints(case: str, storage: str, tmp_path: Path) -> None:
    """Codes that are carried over count as they are, others as they are stored anew."""
    source = quantized_checkpoint(tmp_path / "model", case).folder
    plan = planned(source).planned
    assert plan is not None and storage in {item.storage for item in plan.weights}
    out = compiled(source, tmp_path / "out", "default")
    assert {file: item.bytes for file, item in plan.files.items()} == {
        file: (out / file).stat().st_size for file in plan.files
    }


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3_text", "gpt2"])
def test_other_families(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts of which a share is read for each token, windows of some layers, learned positions: to the byte as well."""
    source = tmp_path / "model"
    make_family(source, name)
    plan = planned(source, tokenizer="none").planned
    assert plan is not None
    out = compiled(source, tmp_path / "out", "default", tokenizer="none")
    assert {file: item.bytes for file, item in plan.files.items()} == {
        file: (out / file).stat().st_size for file in plan.files
    }
    monkeypatch.setattr(plans, "FEW_NODES", 0)
    few = planned(source, tokenizer="none").planned
    alone = planned(without_numbers(source, tmp_path / "alone"), tokenizer="none").planned
    for other in (few, alone):
        assert other is not None and other.files["llm.mnn.weight"] == plan.files["llm.mnn.weight"]
        assert (other.caches, other.memory) == (plan.caches, plan.memory)
        # A configuration alone does not tell what stands before the names in files.
        assert [_unprefixed(item) for item in other.weights] == [_unprefixed(item) for item in plan.weights]
    config = json.loads((source / "config.json").read_text())
    experts = config.get("num_local_experts")
    for item in plan.weights:
        if ".experts." in item.name:
            assert item.streamed == item.loaded * config["num_experts_per_tok"] / config.get("num_experts", experts)
        elif item.loaded:
            assert item.streamed == item.loaded


@pytest.mark.parametrize(
    ("name", "kinds", "target"), [("deepseek_v3", (1, 6), None), ("qwen3_next", (1, 3, 3), "3.6.1")]
)
def test_layers_without_names_of_their_own_are_counted(
    name: str, kinds: tuple[int, ...], target: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operators that passes put in place of latent attention and of the delta rule bear no layer's name."""
    source = tmp_path / "model"
    make_family(source, name)
    alone = without_numbers(source, tmp_path / "alone")
    config = json.loads((alone / "config.json").read_text())
    count = 2 * config["num_hidden_layers"] + 3
    config |= {"num_hidden_layers": count}
    if "layer_types" in config:
        config["layer_types"] = (4 * config["layer_types"])[:count]
    (alone / "config.json").write_text(json.dumps(config))
    whole = planned(alone, tokenizer="none", target=target).planned
    monkeypatch.setattr(plans, "FEW_NODES", 0)
    plan = planned(alone, tokenizer="none", target=target)
    few = plan.planned
    assert whole is not None and few is not None and plan.kinds == kinds
    assert sum(item.layers for item in few.caches) == count
    assert few.files["llm.mnn.weight"] == whole.files["llm.mnn.weight"]
    assert (few.weights, few.caches) == (whole.weights, whole.caches)
    for found, wanted in zip(few.memory, whole.memory, strict=True):
        assert (found.weights, found.cache) == (wanted.weights, wanted.cache)
        # What all layers share is free after the last one, which stands for others here.
        assert abs(found.activations / wanted.activations - 1) < 0.05


def _unprefixed(item: PlannedWeights) -> PlannedWeights:
    return replace(item, name=re.sub(r"^(model|transformer)\.", "", item.name))


def without_numbers(folder: Path, copy: Path) -> Path:
    copy.mkdir()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            shutil.copy(folder / name, copy)
    return copy


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
def test_a_configuration_alone_gives_the_same(family: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", family)
    whole, alone = planned(source), planned(without_numbers(source, tmp_path / "alone"))
    assert whole.planned is not None and alone.planned is not None
    assert alone.stored_bytes is None and whole.stored_bytes
    for name in ("files", "weights", "caches", "memory"):
        assert getattr(alone.planned, name) == getattr(whole.planned, name)


@pytest.mark.parametrize("keys", [{"num_hidden_layers": 6}, SLIDING], ids=["one kind", "two kinds"])
@pytest.mark.parametrize("pipeline", ["default", "fp16"])
def test_one_layer_of_each_kind_gives_what_all_layers_give(
    keys: dict[str, Any], pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_checkpoint(tmp_path / "model", "qwen2", **keys)
    whole = planned(source, pipeline).planned
    monkeypatch.setattr(plans, "FEW_NODES", 0)
    plan = planned(source, pipeline)
    few = plan.planned
    assert whole is not None and few is not None
    assert plan.kinds == ((1, 5) if keys is not SLIDING else (1, 1, 3))
    assert few.files["llm.mnn.weight"] == whole.files["llm.mnn.weight"]
    assert (few.weights, few.caches, few.memory) == (whole.weights, whole.caches, whole.memory)
    model = few.files["llm.mnn"]
    assert not model.exact and abs(model.bytes / whole.files["llm.mnn"].bytes - 1) < 0.15
    assert plan.card.windows == planned(source, pipeline).card.windows and plan.card.layers == len(plan.card.windows)


def test_layers_that_store_other_tensors_are_of_another_kind(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=3)
    assert planned(source).kinds == (1, 2)
    from frontends.containers.safetensors import open_checkpoint
    from tests.support.checkpoints import write_safetensors

    tensors = {name: tensor.load() for name, tensor in open_checkpoint(source).tensors.items()}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].astype("float32")
    write_safetensors(source / "model.safetensors", tensors)
    assert planned(source).kinds == (1, 1, 1)


def test_no_number_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """But those of vectors of at most a few kilobytes, which passes compare."""
    sizes: list[int] = []
    given = Files.read

    def counted(files: Files, path: str, offset: int, count: int) -> Any:
        if Path(path).parent == EXAMPLE:
            sizes.append(count)
        return given(files, path, offset, count)

    monkeypatch.setattr(Files, "read", counted)
    assert planned(EXAMPLE).planned is not None
    assert sum(sizes) < 0.05 * (EXAMPLE / "model.safetensors").stat().st_size and max(sizes) <= 2048


def test_a_repository_is_known_from_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", shards=2)
    monkeypatch.setattr(outlines, "HEADER_START", 64)
    fetched: list[int] = []

    class Hub:
        def model_info(self, name: str, **_: object) -> SimpleNamespace:
            files = [SimpleNamespace(rfilename=path.name, size=path.stat().st_size) for path in source.iterdir()]
            return SimpleNamespace(siblings=files, sha="0")

    def start(url: str, count: int) -> bytes:
        fetched.append(count)
        return (source / url).read_bytes()[:count]

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_url", lambda name, file, revision: file)
    monkeypatch.setattr("frontends.checkpoint.hub.download", lambda *_: source)
    monkeypatch.setattr(outlines, "_range", start)
    found, here = planned("org/model"), planned(source)
    assert found.planned is not None and here.planned is not None
    assert (found.planned.files, found.planned.weights) == (here.planned.files, here.planned.weights)
    assert found.stored_bytes == here.stored_bytes and found.card.title == "org/model"
    assert sum(fetched) < 20_000


def test_what_a_release_cannot_run_is_told_with_the_reason(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama")
    plan = planned(source, "default{scale=f16}", target="3.6.1")
    assert plan.planned is not None
    assert [item.release for item in plan.releases if item.runs] == ["3.6.0", "3.6.1"]
    assert all(item.code == "B603" and item.reason for item in plan.releases if not item.runs)
    usual = planned(source, "default{scale=f16}")
    assert usual.refused is not None and usual.refused.code == "B603"
    assert usual.target == "3.6.1" and usual.planned is not None and usual.planned.files == plan.planned.files
    assert planned(source, "default{scale=f16}", target="3.5.0").planned is None


def test_what_is_printed(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--plan"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.stdout.split())
    for words in ("qwen2, 4 layers, 3,281,152 weights", "llm.mnn.weight 2.37 MB", "3.4.0, 3.4.1, 3.5.0, 3.6.0, 3.6.1",
                  "no weight was read and nothing was written"):  # fmt: skip
        assert words in text
    data = json.loads(CliRunner().invoke(main, ["--plan", "--json"]).stdout)
    assert data["files"]["llm.mnn.weight"] == {"bytes": 2374510, "exact": True}
    assert data["memory"][-1]["tokens"] == 2048 and data["effort"]["seconds"] >= 0


def test_memory_settings_count(tmp_path: Path) -> None:
    low, normal = planned(EXAMPLE).planned, planned(EXAMPLE, memory="normal").planned
    assert low is not None and normal is not None
    assert normal.streamed > 3 * low.streamed and normal.files == low.files


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--budget", "4.5bpw"], "U957", "chosen by measurement here (budget=4.5bpw)"),
        (["--passes", "mixed"], "U957", "chosen by measurement"),
        (["--via", "torch"], "U957", "nothing is planned of --via torch"),
        (["--to", "onnx"], "U957", "nothing is planned"),
        (["--lora", "x"], "U918", "--lora has no effect"),
    ],
)
def test_what_no_plan_can_tell(arguments: list[str], code: str, says: str) -> None:
    done = CliRunner().invoke(main, [str(EXAMPLE), "--plan", *arguments])
    assert done.exit_code == 1 and f"error[{code}]" in done.stderr
    assert says in " ".join(done.stderr.split())
