"""assign-precision, the quantization file and insert-qdq."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from frontends.checkpoint.load import load
from ir.base.diag import LadingError
from ir.facts.precision import PrecisionPlan
from ir.quant.stored_weight import storage_of
from ir.target.target import default_target
from ir.tensor.bf16_parts import parts_needed
from passes.framework.manager import PassManager
from passes.framework.pipeline import Pipeline
from passes.inputs.discover_inputs import DiscoverInputs
from passes.precision.assign_precision import AssignPrecision
from passes.precision.plan_file import load_rules
from passes.precision.planned_weights import weights_of
from tests.support.checkpoints import make_checkpoint

pytestmark = pytest.mark.mnn  # what a runtime feeds, and its pipelines, come with one


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A checkpoint whose logits matrix is its embedding."""
    return make_checkpoint(tmp_path_factory.mktemp("tied"), "qwen2", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A checkpoint with a logits matrix of its own and an odd vocabulary."""
    return make_checkpoint(tmp_path_factory.mktemp("untied"), "qwen2", vocab_size=321)


def planned(folder: Path, **options):
    """The graph of a checkpoint with its inputs discovered and a plan recorded."""
    graph = load(folder)
    PassManager(Pipeline((DiscoverInputs(), AssignPrecision(**options)))).run(graph, given=("typed",))
    return graph, graph.required_fact(PrecisionPlan)


def told(folder: Path, **options):
    """The report and the plan that assign-precision makes of a checkpoint."""
    graph = load(folder)
    report = PassManager(Pipeline((DiscoverInputs(), AssignPrecision(**options)))).run(graph, given=("typed",))
    return report, graph.required_fact(PrecisionPlan)


def run(folder: Path, text: str):
    graph = load(folder)
    PassManager(text).run(graph)
    return graph


def rules_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_default_policy_is_four_bits_with_eight_for_logits_and_embedding(tied):
    _, plan = planned(tied)
    assert plan.storage["lm_head.weight"].bits == plan.storage["model.embed_tokens.weight"].bits == 8
    layers = [item for name, item in plan.storage.items() if ".layers." in name]
    assert len(layers) == 14 and {item.bits for item in layers} == {4}
    assert plan.tied


def test_norms_and_biases_are_never_planned(tied):
    _, plan = planned(tied)
    assert not [name for name in plan.storage if "norm" in name or "bias" in name]


def test_block_that_does_not_divide_is_replaced_by_one_that_does(tied):
    _, plan = planned(tied)
    # 64 input features take a block of 64; 96 do not, and 32 is the largest multiple of 32 below that divides them.
    assert plan.storage["model.layers.0.mlp.up_proj.weight"].block == 64
    assert plan.storage["model.layers.0.mlp.down_proj.weight"].block == 32


def test_untied_embedding_is_not_tied(untied):
    _, plan = planned(untied)
    assert not plan.tied


def test_four_bit_embedding_of_an_odd_vocabulary_is_raised(untied):
    _, plan = planned(untied, logits_bits=4)
    assert plan.storage["lm_head.weight"].bits == 4
    assert plan.storage["model.embed_tokens.weight"].bits == 8
    assert "odd vocabulary" in plan.rules["model.embed_tokens.weight"]


@pytest.mark.parametrize(("asked", "stored"), [(2, 4), (3, 4), (4, 4), (5, 8), (6, 8), (7, 8), (8, 8), (16, 16)])
def test_a_tied_matrix_is_stored_once_at_a_width_that_rows_can_be_read_at(tied, asked, stored):
    report, plan = told(tied, logits_bits=asked)
    assert plan.storage["lm_head.weight"] == plan.storage["model.embed_tokens.weight"]
    assert (plan.storage["lm_head.weight"].bits, plan.tied) == (stored, True)
    said = [(item.code, item.severity) for item in report.all_diagnostics()]
    assert said == ([("Q464", "note")] if asked != stored else [])


def test_an_odd_vocabulary_raises_a_tied_matrix_instead_of_storing_it_twice(tmp_path):
    folder = make_checkpoint(tmp_path, "qwen2", vocab_size=321, tie_word_embeddings=True)
    report, plan = told(folder, logits_bits=4)
    assert (plan.storage["lm_head.weight"].bits, plan.tied) == (8, True)
    assert [item.code for item in report.all_diagnostics()] == ["Q464"]


def test_exact_matrices_are_not_tied_and_nothing_is_said(tied):
    report, plan = told(tied, logits_bits=32)
    assert (plan.storage["lm_head.weight"].bits, plan.tied) == (32, False)
    assert not report.all_diagnostics()


def test_a_rule_for_the_logits_holds_for_the_rows_read_from_them(tied, tmp_path):
    path = rules_file(tmp_path, '[[rule]]\nrole = "logits"\nbits = 8\nblock = "row"\nsymmetric = true\n')
    report, plan = told(tied, plan=path)
    head = plan.storage["lm_head.weight"]
    assert (head.block, head.symmetric) == (0, True)
    assert plan.tied and plan.storage["model.embed_tokens.weight"] == head
    assert not report.all_diagnostics()


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        ('[[rule]]\nrole = "logits"\nbits = 6\n', {}),
        ('[[rule]]\nrole = "embedding"\nblock = 32\n', {}),
        ("", {"embedding_bits": 4}),
    ],
)
def test_a_tied_matrix_that_is_stored_twice_is_told_with_its_cost(tied, tmp_path, rules, options):
    if rules:
        options["plan"] = rules_file(tmp_path, rules)
    report, plan = told(tied, **options)
    assert not plan.tied
    (said,) = report.all_diagnostics()
    assert (said.code, said.severity) == ("Q465", "warning")
    graph = load(tied)
    rows, width = graph.value("model.embed_tokens.weight").sizes
    storage = plan.storage["model.embed_tokens.weight"]
    size = default_target().weight_bytes(rows, width, storage)
    assert f"{size:,} bytes more" in said.message and storage.words in said.message


def test_a_method_that_looks_at_inputs_needs_statistics(tmp_path):
    assert not AssignPrecision().needs_statistics
    assert AssignPrecision(budget="4bpw").needs_statistics
    assert AssignPrecision(method="gptq").needs_statistics and not AssignPrecision(method="gptq").follows
    assert AssignPrecision(method="gptaq").follows and AssignPrecision(budget="4bpw").follows
    assert AssignPrecision(plan=rules_file(tmp_path, '[[rule]]\nmatch="*"\nmethod="gptq"\n')).needs_statistics
    assert not AssignPrecision(plan=rules_file(tmp_path, '[[rule]]\nmatch="*"\nmethod="hqq"\n')).needs_statistics


def test_first_matching_rule_wins(tied, tmp_path):
    path = rules_file(
        tmp_path,
        """
        [[rule]]
        match = "model.layers.0.*"
        bits = 8
        block = "row"
        [[rule]]
        match = "re:q_proj"
        bits = 6
        symmetric = true
        [[rule]]
        role = "logits"
        bits = 16
        """,
    )
    _, plan = planned(tied, plan=path)
    first, second = (plan.storage[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1))
    assert (first.bits, first.block, first.symmetric) == (8, 0, False)
    assert (second.bits, second.block, second.symmetric) == (6, 64, True)
    assert plan.storage["lm_head.weight"].bits == 16
    assert plan.storage["model.layers.1.mlp.up_proj.weight"].bits == 4
    assert plan.tied
    assert str(path) in plan.rules["model.layers.0.self_attn.q_proj.weight"]


def test_bounds_of_rules_and_floors_move_the_width_of_the_policy(tied, tmp_path):
    path = rules_file(
        tmp_path,
        """
        [[rule]]
        match = "*q_proj*"
        min_bits = 6
        [[rule]]
        match = "*k_proj*"
        max_bits = 3
        [[rule]]
        match = "*v_proj*"
        bits = 3
        """,
    )
    _, plan = planned(tied, plan=path, floor=("layer:4", "*.o_proj.weight:8", "*.1.*v_proj*:5"))
    widths = {name: plan.storage[f"model.layers.1.self_attn.{name}_proj.weight"].bits for name in "qkvo"}
    assert widths == {"q": 6, "k": 4, "v": 5, "o": 8}
    assert plan.storage["model.layers.0.self_attn.v_proj.weight"].bits == 4
    assert plan.storage["model.layers.0.mlp.up_proj.weight"].bits == 4
    assert plan.storage["lm_head.weight"].bits == 8


@pytest.mark.parametrize("floor", ["logits", "logits:9", ":4", "logits:x", "logits:444"])
def test_a_malformed_floor_is_refused(tied, floor):
    with pytest.raises(LadingError, match="not a floor") as error:
        planned(tied, floor=(floor,))
    assert error.value.code == "Q411"


def test_a_floor_that_matches_nothing_is_an_error(tied):
    with pytest.raises(LadingError, match="matches no weight") as error:
        planned(tied, floor=("*q_porj*:4",))
    assert error.value.code == "Q412"


def test_an_embedding_method_that_needs_inputs_is_refused(tied):
    with pytest.raises(LadingError, match="needs inputs") as error:
        planned(tied, embedding_method="gptq")
    assert error.value.code == "Q413"


@pytest.mark.mnn
@pytest.mark.parametrize(
    "options",
    [
        "",
        "bits=3 block=32 logits-bits=4",
        "bits=5 block=0 symmetric logits-bits=6",
        "bits=7 scale=f16 logits-bits=3 embedding-bits=8",
        "bits=2 symmetric scale=f16 block=16",
        "bits=16 logits-bits=16",
        "bits=32 logits-bits=8 embedding-bits=16",
        "bits=6 embedding-bits=32",
    ],
)
@pytest.mark.parametrize("family", ["tied", "untied", "qwen3"])
def test_sizes_are_known_before_anything_is_stored(family, options, request, tmp_path):
    from backends.mnn.target.sizes import exact_rows_bytes, fixed_bytes, weight_bytes
    from backends.mnn.write.weight_layout import plan_layout

    folder = make_checkpoint(tmp_path, family) if family == "qwen3" else request.getfixturevalue(family)
    graph = load(folder)
    PassManager(f"infer-types,discover-inputs,assign-precision{{{options}}}").run(graph)
    plan = graph.required_fact(PrecisionPlan)
    expected, rows = fixed_bytes(graph), 0
    for weight in weights_of(graph):
        storage = plan.storage[weight.name]
        if weight.role == "embedding" and storage.bits == 32:
            rows = exact_rows_bytes(weight.rows, weight.columns, parts_needed(weight.value.const))
        elif not (plan.tied and weight.role == "embedding"):
            expected += weight_bytes(weight.rows, weight.columns, storage)
    PassManager("insert-qdq,legalize-mnn,sink-layouts,cse,dce").run(graph, given=("typed", "signature"))
    layout = plan_layout(graph)
    assert layout.nbytes == expected
    file = layout.embedding_file
    assert (file.source.nbytes if file is not None else 0) == rows


def test_json_file_says_the_same_as_toml(tmp_path):
    toml = rules_file(tmp_path, '[[rule]]\nmatch = "a*"\nbits = 3\n')
    other = tmp_path / "plan.json"
    other.write_text(json.dumps({"rule": [{"match": "a*", "bits": 3}]}))
    left, right = load_rules(toml)[0], load_rules(other)[0]
    assert (left.match, dict(left.storage)) == (right.match, dict(right.storage))


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("[[rule]", "Q410", "cannot read"),
        ("[[rules]]\nbits = 4", "Q411", "one list of rules"),
        ('[[rule]]\nmatch = "*"\nbit = 4', "Q411", "unknown key 'bit'"),
        ('[[rule]]\nmatch = "*"\nbits = 9', "Q411", "not one of"),
        ('[[rule]]\nmatch = "*"\nsymmetric = 1', "Q411", "symmetric = 1"),
        ('[[rule]]\nmatch = "*"\nblock = "col"', "Q411", "block = 'col'"),
        ('[[rule]]\nmatch = "*"\nblock = 0', "Q411", "block = 0"),
        ('[[rule]]\nrole = "head"', "Q411", "role = 'head'"),
        ('[[rule]]\nmatch = "re:("', "Q411", "regular expression"),
        ("[[rule]]\nbits = 4", "Q411", "'match' or 'role'"),
        ('[[rule]]\nmatch = "*"\nmin_bits = 9', "Q411", "min_bits = 9"),
        ('[[rule]]\nmatch = "*"\nmax_bits = true', "Q411", "max_bits = True"),
        ('[[rule]]\nmatch = "*"\nbits = 4\nmin_bits = 3', "Q411", "no use for min_bits"),
        ('[[rule]]\nmatch = "*"\nmax_bits = 3\nmin_bits = 4', "Q411", "max_bits is less"),
    ],
)
def test_bad_file_is_refused_with_its_rule(tied, tmp_path, text, code, says):
    path = rules_file(tmp_path, text)
    with pytest.raises(LadingError, match=r"plan\.toml") as error:
        planned(tied, plan=path)
    assert error.value.code == code and says in str(error.value)


def test_missing_file_is_refused(tied, tmp_path):
    with pytest.raises(LadingError) as error:
        planned(tied, plan=tmp_path / "none.toml")
    assert error.value.code == "Q410"


@pytest.mark.parametrize("pattern", ["model.layer.*", "re:q_porj"])
def test_pattern_that_matches_nothing_is_an_error(tied, pattern):
    with pytest.raises(LadingError, match="matches no weight") as error:
        planned(tied, keep=(pattern,))
    assert error.value.code == "Q412"


def test_rule_shadowed_by_earlier_ones_is_an_error(tied, tmp_path):
    path = rules_file(tmp_path, '[[rule]]\nmatch = "*"\n[[rule]]\nmatch = "*q_proj*"\nbits = 8\n')
    with pytest.raises(LadingError, match="shadowed") as error:
        planned(tied, plan=path)
    assert error.value.code == "Q412"


def test_unknown_method_is_refused_before_any_work(tied):
    with pytest.raises(LadingError) as error:
        planned(tied, method="best")
    assert error.value.code == "Q413"


def test_rule_cannot_ask_for_an_embedding_that_no_runtime_reads(tied, tmp_path):
    path = rules_file(tmp_path, '[[rule]]\nrole = "embedding"\nbits = 6\n')
    with pytest.raises(LadingError) as error:
        planned(tied, plan=path)
    assert error.value.code == "Q414"


def test_plan_survives_its_data_form(tied):
    _, plan = planned(tied, bits=6, keep=("model.layers.0.mlp.*",))
    again = PrecisionPlan.from_data(json.loads(json.dumps(plan.to_data())))
    assert again == plan
    assert plan.storage["model.layers.0.mlp.up_proj.weight"].bits == 32


def test_plan_that_speaks_of_a_vanished_weight_is_reported(tied):
    graph, plan = planned(tied)
    graph.set_fact(plan.name, PrecisionPlan({**plan.storage, "gone.weight": plan.storage["lm_head.weight"]}))
    assert [item.code for item in graph.facts[plan.name].check(graph)] == ["I191"]


def test_insert_qdq_stores_blocks_under_standard_dequantize_nodes(tied):
    graph = run(tied, "infer-types,discover-inputs,assign-precision,insert-qdq")
    weight = graph.value("model.layers.0.mlp.down_proj.weight")
    node = weight.producer
    assert node.op == "DequantizeLinear"
    assert (node.attrs["axis"], node.attrs["block_size"]) == (0, 32)
    codes, scale, zero = node.inputs
    assert (codes.dtype.name, codes.shape) == ("i4", (96, 64))
    assert (scale.shape, zero.dtype.name) == ((3, 64), "i4")


def test_dequantized_value_is_codes_minus_zero_times_scale(tied):
    graph = run(tied, "infer-types,discover-inputs,assign-precision{bits=5 block=32},insert-qdq")
    weight = graph.value("model.layers.1.self_attn.k_proj.weight")
    codes, scale, zero = (value.const.load().astype(np.float64) for value in weight.producer.inputs)
    wanted = (codes.reshape(2, 32, -1) - zero[:, None]) * scale[:, None]
    stored = storage_of(weight, matmul=True)
    got = stored.dequantized_rows(0, stored.rows)
    np.testing.assert_allclose(got.T, wanted.reshape(64, -1), rtol=0, atol=1e-6)


def test_real_zero_is_stored_under_its_own_operator(tied):
    graph = run(tied, "infer-types,discover-inputs,assign-precision{zero=float},insert-qdq")
    node = graph.value("model.layers.0.mlp.up_proj.weight").producer
    assert node.op == "lading.AffineDequantize" and node.inputs[2].dtype.name == "f32"


def test_half_scales_come_with_real_zeros(tied):
    _, plan = planned(tied, scale="f16")
    assert {item.zero for item in plan.storage.values()} == {"float"}


def test_half_floats_are_stored_under_casts(tied):
    graph = run(tied, "infer-types,discover-inputs,assign-precision{bits=16 logits-bits=16},insert-qdq")
    node = graph.value("lm_head.weight").producer
    assert node.op == "Cast" and node.inputs[0].dtype.name == "f16"


def test_tied_matrices_share_one_recipe(tied):
    graph = run(tied, "infer-types,discover-inputs,assign-precision,insert-qdq")
    head = storage_of(graph.value("lm_head.weight"), matmul=True)
    table = storage_of(graph.tables["embedding"])
    assert head.quantized is table.quantized


def test_insert_qdq_needs_a_plan_before_anything_runs(tied):
    graph = load(tied)
    before = graph.version
    with pytest.raises(LadingError, match="assign-precision gives it") as error:
        PassManager("insert-qdq").run(graph)
    assert error.value.code == "P320" and graph.version == before


def test_planned_weight_that_is_computed_is_refused(tied):
    graph, plan = planned(tied)
    name = "model.layers.0.mlp.up_proj.weight"
    value = graph.value(name)
    node = graph.add("Identity", [value], types=[value.type], before=graph.first)
    graph.rename(value, "kept")
    graph.rename(node.output, name)
    graph.set_fact(plan.name, plan)
    with pytest.raises(LadingError) as error:
        PassManager("insert-qdq").run(graph)
    assert error.value.code == "Q420"
