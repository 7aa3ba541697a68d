"""``config.json`` and ``llm_config.json``: spelled so that every release of the target reads the same values.

No key stands in both files, because 3.4.0 lets the first win and later releases the second. ``tie_embeddings`` is the
five-element list that all releases read. Numbers are written with the exact JSON kind that 3.4 insists on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from backends.mnn.card import completed
from backends.mnn.target.releases import RELEASES, rounds_by_block
from backends.mnn.write.weight_layout import Layout, Matrix
from ir.facts.inputs import DynamicInputs
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.quant.stored_codes import NAME
from ir.quant.stored_weight import storage_of

if TYPE_CHECKING:
    from backends.contract.records import Memory

MODEL, WEIGHTS, EMBEDDING = "llm.mnn", "llm.mnn.weight", "embeddings_bf16.bin"
CONFIG, LLM_CONFIG, CONFIG_TEXT = "config.json", "llm_config.json", "config.3.4.json"
TOKENIZER, TOKENIZER_TEXT = "tokenizer.mtok", "tokenizer.txt"

PLANES = (2, 1, 1, "seq", "kv")
"""Shape of the mask that the runtime feeds with ``attention_type: mix``: everything of the past, and a window of it."""

NO_WINDOW = 1 << 30
"""A window as wide as any history, where the mask has its planes and no layer has a window."""


def runtime_config(
    layout: Layout,
    sampler: Mapping[str, Any],
    tokenizer_file: str,
    *,
    precision: str,
    memory: str,
    threads: int = 4,
    dynamic_option: int = 0,
    mapped: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """``config.json``: file names, backend settings and sampling.

    Args:
        layout: decides whether an embedding file exists.
        sampler: keys of the sampler, see `backends.mnn.sampling.translate`.
        tokenizer_file: which tokenizer form this configuration names.
        precision, memory: ``low``, ``normal`` or ``high``, see the MNN documentation of its CPU backend.
        threads: CPU threads.
        dynamic_option: how low memory quantizes activations; 0, the runtime's default, is not written.
        mapped: further keys: those by which later loads map the weights, and those of `Settings.others`.
    """
    config: dict[str, Any] = {"llm_model": MODEL, "llm_weight": WEIGHTS, "llm_config": LLM_CONFIG}
    if layout.embedding_file is not None:
        config["embedding_file"] = EMBEDDING
    config |= {
        "tokenizer_file": tokenizer_file,
        "backend_type": "cpu",
        "thread_num": threads,
        "precision": precision,
        "memory": memory,
    }
    if dynamic_option:
        config["dynamic_option"] = dynamic_option
    return {**config, **mapped, **sampler}


@dataclass(frozen=True)
class Recommendation:
    """Runtime settings that suit what is stored, and why."""

    memory: Memory
    precision: str
    dynamic_option: int
    reason: str


def deciding(graph: Graph) -> list[Storage]:
    """The storages that decide on settings and bars: those planned, and those that came quantized unless floats were
    asked for. `graph` is MNN-legal."""
    plan = graph.fact(PrecisionPlan)
    planned = list(plan.storage.values()) if plan is not None else []
    if plan is not None and plan.exact:
        return planned
    linears = [storage_of(node.operand(1), matmul=True) for node in graph.nodes if node.op == "mnn.Convolution"]
    return planned + [item.storage for item in linears if item is not None and item.storage.method == NAME]


def recommend(storage: Iterable[Storage]) -> Recommendation:
    """Settings for a model whose weights are stored so.

    From measurements on x86-64: memory low decodes three to four times as fast as normal and holds a quarter of it or
    less. Quantizing activations by row adds about 7e-4 nats to the example model at any width, by block 1.3e-4. On the
    shape of Qwen2.5-0.5B blocks take 7 % of the decoding speed with 8-bit weights, and 15 % with 4-bit ones, which lose
    1e-2 nats themselves. Keys and values in 8 bits (``attention_mode`` 9 and 10) are never recommended: the divergence
    while decoding is four times as large.
    """
    items = list(storage)
    integer = [item for item in items if item.bits <= 8]
    if not integer:
        precision = "high" if all(item.bits == 32 for item in items) else "low"
        return Recommendation(
            "normal", precision, 0, "no weight is stored as integers, so nothing is gained by low memory"
        )
    if all(map(rounds_by_block, integer)):
        reason = "the weights are so exact that activations rounded by row would cost more than they do; by block they do not"
        return Recommendation("low", "low", 2, reason)
    return Recommendation("low", "low", 0, "codes stay packed, and activations cost little beside the weights")


def model_config(graph: Graph, layout: Layout, template: Mapping[str, str]) -> dict[str, Any]:
    """``llm_config.json``: what the runtime must know of the model.

    Args:
        graph: MNN-legal graph with its recorded inputs.
        layout: where the embedding rows lie.
        template: ``chat_template``, ``bos`` and ``eos`` as far as the checkpoint has them.
    """
    fact = graph.required_fact(DynamicInputs)
    card = completed(graph)
    found = fact.find("embedding-rows")
    assert found is not None, fact
    rows = graph.value(found.input)
    config: dict[str, Any] = {
        "model_type": card.model_type,
        # The width of an embedding row, which is a multiple of the model's when the rows come in exact parts.
        "hidden_size": rows.dims[-1],
        "layer_nums": card.layers,
        "attention_mask": "float",
        "attention_type": "full",
        "is_mrope": False,
        "max_position_embeddings": card.max_position,
    }
    config = {key: value for key, value in config.items() if value is not None}
    mask = fact.find("attention-mask")
    if mask is not None and graph.value(mask.input).rank == len(PLANES):
        config |= {"attention_type": "mix", "sliding_window": max(fact.windows, default=0) or NO_WINDOW}
    if layout.embedding is not None:
        config["tie_embeddings"] = row_table(layout.embedding)
    if template:
        config["jinja"] = dict(template)
    return config


def row_table(matrix: Matrix) -> list[int]:
    """``tie_embeddings``, where embedding rows lie: first code, alpha, bytes of alpha, bits, block (0 for a row).

    Where the alpha is in half floats, a 1 follows.
    """
    if matrix.weight.quantized is None:
        return [matrix.code_offset, 0, 0, 16, 0]
    block = 0 if matrix.weight.block == matrix.weight.columns else matrix.weight.block
    found = [matrix.code_offset, matrix.alpha_offset, matrix.alpha_bytes, matrix.weight.bits, block]
    return [*found, 1] if matrix.weight.storage.scale == "f16" else found


def config_for(folder: Path, version: str) -> Path:
    """The configuration file of a model directory that a release should load."""
    release = RELEASES.get(version)
    older = folder / CONFIG_TEXT
    return older if release is not None and not release.mtok and older.is_file() else folder / CONFIG
