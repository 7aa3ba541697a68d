"""Larger blocks by measured errors and bytes read."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontends.checkpoint.load import load
from ir.facts.precision import PrecisionPlan
from ir.quant.statistics.moments import CalibrationText
from ir.target.target import Target
from passes.framework.context import PassContext
from passes.framework.manager import PassManager
from passes.precision.measured.block_choice import chosen_blocks
from tests.support.checkpoints import make_checkpoint


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LADING_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A checkpoint with long rows whose logits matrix is its embedding."""
    sizes = dict(hidden_size=256, intermediate_size=512, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    return make_checkpoint(tmp_path_factory.mktemp("tied"), "qwen2", tie_word_embeddings=True, **sizes)


def planned(folder, options, *, before="infer-types,discover-inputs", target=None):
    """The plan that assign-precision makes with these options."""
    rng = np.random.default_rng(5)
    text = CalibrationText(tuple(rng.integers(0, 320, 64).astype(np.int32) for _ in range(4)), ())
    graph = load(folder)
    settings = (text,) if target is None else (text, target)
    PassManager(f"{before},assign-precision{{{options}}}").run(graph, PassContext(*settings))
    return graph.required_fact(PrecisionPlan)


def product(losses, sizes, picks, trade):
    return (
        sum(r[p] for r, p in zip(losses, picks, strict=True))
        * sum(r[p] for r, p in zip(sizes, picks, strict=True)) ** trade
    )


rows = st.lists(st.floats(1, 9), min_size=3, max_size=3)


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=4), st.floats(0.1, 8))
def test_no_single_step_makes_the_product_less(problem, trade):
    losses, sizes = ([pair[axis] for pair in problem] for axis in range(2))
    picks = chosen_blocks(losses, sizes, trade)
    found = product(losses, sizes, picks, trade)
    assert found <= product(losses, sizes, [0] * len(losses), trade) * (1 + 1e-9)
    totals = [sum(row[pick] for row, pick in zip(part, picks, strict=True)) for part in (losses, sizes)]
    for group, other in itertools.product(range(len(losses)), range(3)):
        tangent = (losses[group][other] - losses[group][picks[group]]) / totals[0]
        tangent += trade * (sizes[group][other] - sizes[group][picks[group]]) / totals[1]
        assert tangent >= -1e-9 or math.isclose(tangent, 0, abs_tol=1e-6)


@pytest.mark.mnn
def test_blocks_grow_with_the_trade_and_never_shrink(tied):
    kept, some, rows = (planned(tied, f"block-trade={trade}") for trade in (0, 1.2, 50))
    sizes = [
        [item.block or 512 for name, item in plan.storage.items() if ".layers." in name] for plan in (kept, some, rows)
    ]
    assert set(sizes[0]) == {64} and set(sizes[2]) == {512}
    assert all(low <= middle <= high for low, middle, high in zip(*sizes, strict=True))
    assert {item.bits for item in rows.storage.values()} == {4, 8}
    assert "block by measurement" in rows.rules["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.mnn
def test_a_tied_embedding_follows_the_logits_matrix_and_rules_keep_their_blocks(tied, tmp_path):
    path = tmp_path / "mix.toml"
    path.write_text('[[rule]]\nmatch = "*.o_proj.weight"\nblock = 32\n')
    plan = planned(tied, f'block-trade=50 plan="{path}"')
    assert plan.tied and plan.storage["lm_head.weight"] == plan.storage["model.embed_tokens.weight"]
    assert plan.storage["lm_head.weight"].block == 0
    assert plan.storage["model.layers.0.self_attn.o_proj.weight"].block == 32


@pytest.mark.mnn
def test_a_block_that_is_named_and_the_blocks_of_fine_plans_stay(tied, monkeypatch):
    from backends.mnn.target.releases import MnnTarget

    assert {item.block for item in planned(tied, "block=32 block-trade=50").storage.values()} == {32}
    fine = "bits=6 logits-bits=8 block-trade=50"
    # Activations are rounded by these blocks; were they rounded by row, nothing would speak for them.
    assert {item.block for item in planned(tied, fine).storage.values()} == {64}
    monkeypatch.setattr(MnnTarget, "rounds", lambda self, storage: "row")
    assert {item.block for item in planned(tied, fine).storage.values()} == {0}


@pytest.mark.mnn
@pytest.mark.parametrize("calibrated", [True, False])
def test_weights_that_share_their_inputs_get_one_block(tied, calibrated):
    before = "infer-types,discover-inputs" + ",calibrate" * calibrated
    plan = planned(tied, f"method={'gptq' if calibrated else 'rtn'} block-trade=1.3", before=before)
    for kinds in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        for layer in (0, 1):
            found = {item.block for name, item in plan.storage.items()
                     if f".layers.{layer}." in name and name.split(".")[-2] in kinds}  # fmt: skip
            assert len(found) == 1


@pytest.mark.mnn
def test_a_target_that_cannot_read_such_rows_keeps_blocks_in_a_tied_matrix(tied):
    from backends.mnn.target.releases import target

    assert not target("3.2.0").ties_rows and target().ties_rows and Target().ties_rows
    plan = planned(tied, "block-trade=50", target=target("3.2.0"))
    assert plan.tied and plan.storage["lm_head.weight"].block == 128
