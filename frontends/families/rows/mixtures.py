"""Families with mixtures of experts whose layers are otherwise those of others."""

from __future__ import annotations

from typing import Any

from frontends.configuration.specs import Given, Product, When
from frontends.families.rows.cohere import HUNYUAN, STRETCHED
from frontends.families.rows.glm import HALF
from frontends.families.rows.llama import ALL_WINDOW, MULTIPLIERS
from frontends.families.scheme import FULL, SLIDING, Family, Kind, Kinds, RopeRule, Sparse
from frontends.parts.experts import ClampedGlu, Experts, Stacked
from frontends.parts.feed_forward import Glu
from frontends.parts.norms import LAYER_NORM
from frontends.parts.softmax import Softmax

COUNT: Any = ("num_local_experts", "num_experts")

WHOLE = "intermediate_size"
"""Experts are as wide as the feed-forward part of layers without."""

W123 = Glu(at="experts.{e}.", gate="w1", up="w3", down="w2", inner=WHOLE)

QWEN = Experts(renorm=("norm_topk_prob", False))

QWEN_SHARED = Experts(
    renorm=("norm_topk_prob", False),
    shared=Glu(at="shared_expert.", inner="shared_expert_intermediate_size"),
    shared_gate="shared_expert_gate",
)

IF_USED = When(("use_sliding_window", False), ("sliding_window", None), None)

EVERY = Sparse(step=("decoder_sparse_step", 1))

SHARED = Glu(at="shared_experts.", inner="moe_intermediate_size")

NO_AUXILIARY = Experts(
    score="sigmoid",
    correction="gate.e_score_correction_bias",
    groups=("n_group", 1),
    keep=("topk_group", 1),
    group_by="top2",
    renorm=("norm_topk_prob", True),
    eps=1e-20,
    scale=("routed_scaling_factor", 1.0),
    shared=SHARED,
    shared_count="n_shared_experts",
)
"""Experts balanced without an auxiliary loss (DeepSeek-V3)."""

ROWS = (
    Family(
        ("mixtral",),
        {"main": Softmax(bias=False, out_bias=False)},
        experts=Experts(at="block_sparse_moe.", renorm=True, each=W123),
        of_kind=ALL_WINDOW,
    ),
    Family(
        ("olmoe",),
        {"main": Softmax(qk_norm="full")},
        experts=Experts(renorm=("norm_topk_prob", False), each=Glu(at="experts.{e}.", inner=WHOLE)),
    ),
    Family(
        ("qwen2_moe",),
        {"main": Softmax(bias=("qkv_bias", True), out_bias=False)},
        experts=QWEN_SHARED,
        sparse=EVERY,
        kinds=Kinds("layer_types", period=2, until=("max_window_layers", 28), only_if=("use_sliding_window", False)),
        of_kind={FULL: Kind(), SLIDING: Kind(window=IF_USED)},
    ),
    Family(
        ("qwen3_moe",),
        {"main": Softmax(qk_norm="head")},
        experts=QWEN,
        sparse=EVERY,
        of_kind={FULL: Kind(window=IF_USED)},
    ),
    Family(
        ("glm4_moe",),
        {"main": Softmax(out_bias=False, qk_norm="head", qk_norm_if=("use_qk_norm", False))},
        experts=NO_AUXILIARY,
        sparse=Sparse(first=("first_k_dense_replace", 1)),
        ropes=HALF,
        extra_layers=True,
    ),
    Family(
        ("glm4v_moe_text",),
        {"main": Softmax(bias=("attention_bias", True), out_bias=False)},
        experts=NO_AUXILIARY,
        sparse=Sparse(first=("first_k_dense_replace", 1)),
        tied=("tie_word_embeddings", False),
        ropes={"main": RopeRule(partial=("rope.partial_rotary_factor", 0.5), names={"mrope": "default"})},
    ),
    Family(
        ("hunyuan_v1_moe",),
        {"main": HUNYUAN},
        experts=Experts(
            best="moe_topk",
            router="gate.wg",
            renorm=True,
            each=Glu(at="experts.{e}.", inner=WHOLE),
            shared=Glu(at="shared_mlp.", inner=WHOLE),
        ),
        ropes=STRETCHED,
    ),
    Family(
        ("granitemoe",),
        {"main": Softmax(scale="attention_multiplier")},
        experts=Experts(
            at="block_sparse_moe.",
            router="router.layer",
            score="logits",
            each=Glu(at="experts.{e}.", inner=WHOLE),
            stacked=Stacked("input_linear.weight", "output_linear.weight"),
        ),
        **MULTIPLIERS,
    ),
    Family(
        ("gpt_oss",),
        {"main": Softmax(sinks="sinks")},
        experts=Experts(
            router="router",
            router_bias=True,
            score="logits",
            each=ClampedGlu(at="experts.{e}.", inner=WHOLE, bias=True),
            stacked=Stacked(order="g:gate|up", axes="in|out", bias="_bias"),
        ),
        kinds=Kinds("layer_types", period=2, hit=FULL, miss=SLIDING),
        of_kind={FULL: Kind(), SLIDING: Kind(window=("sliding_window", None))},
    ),
    Family(
        ("ernie4_5_moe",),
        {"main": Softmax(bias="use_bias", out_bias="use_bias", pairs=True)},
        Glu(bias="use_bias"),
        head_bias=("use_bias", False),
        experts=Experts(
            count=("moe_num_experts", "num_experts"),
            best=("moe_k", "num_experts_per_tok"),
            correction="moe_statics.e_score_correction_bias",
            renorm=True,
            floor="moe_norm_min",
            each=Glu(at="experts.{e}.", inner="moe_intermediate_size"),
            shared=Glu(at="shared_experts.", inner="moe_intermediate_size", bias="use_bias"),
            shared_count="moe_num_shared_experts",
        ),
        sparse=Sparse(
            first=("moe_layer_start_index", 1), last=("moe_layer_end_index", None), step=("moe_layer_interval", 1)
        ),
    ),
    Family(
        ("minimax_m2",),
        {"main": Softmax(bias=False, out_bias=False, qk_norm="full")},
        experts=Experts(
            at="block_sparse_moe.", score="sigmoid", correction="e_score_correction_bias", renorm=True, each=W123
        ),
        ropes={
            "main": RopeRule(
                partial=(
                    "rope.partial_rotary_factor",
                    When(Given("rotary_dim"), Product((("rotary_dim", 1), ("head_dim", -1))), 1.0),
                )
            )
        },
        fixed={"qk_norm_type": ("per_layer",), "use_qk_norm": (True,), "scoring_func": ("sigmoid",)},
    ),
    Family(
        ("phimoe",),
        {"main": Softmax()},
        experts=Experts(
            best=2, at="block_sparse_moe.", score="sparsemixer", jitter=("router_jitter_noise", 0.0), each=W123
        ),
        norm=LAYER_NORM,
        head_bias=("lm_head_bias", False),
        of_kind=ALL_WINDOW,
    ),
)
