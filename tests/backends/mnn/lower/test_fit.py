"""What the profiles say of widths and blocks holds on the real runtimes, and what a release gets wrong is refused."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from backends.mnn.lower.fit import check_storage
from backends.mnn.lower.simulated import simulate
from backends.mnn.read.decoded_weights import MnnModel
from backends.mnn.run import native
from backends.mnn.target import releases as profiles
from backends.mnn.target.environments import ReleaseEnvironments
from backends.mnn.target.releases import PROFILES, RELEASES, VERSIONS, FieldHistory, Step, target
from backends.mnn.write.configs import MODEL, WEIGHTS
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_file import fill, weight_jobs
from backends.mnn.write.weight_layout import Layout, Matrix, plan_layout
from ir.base.diag import LadingError
from ir.base.types import F32, Dim, TensorType
from ir.evaluate.evaluator import evaluate
from ir.facts.precision import PrecisionPlan
from ir.graph.graph import Graph
from ir.quant.storage import Storage
from ir.tensor.inline import InlineTensor
from passes.framework.manager import PassManager
from tests.support.runs import compiled, each_release, interpreters, logits_of, pieces, run_actions
from tests.whole.test_end_to_end import BAR, EXAMPLE, decoded_reference

RUNNER = Path(__file__).resolve().parents[3] / "support" / "linear_run.py"
CALLS = (7, 1)
OUT = 24
IDS = list(range(3, 40))
BOUND = 2e-4
"""Largest difference from what the stored numbers compute, in parts of the largest number."""

ROUNDED = 0.03
"""The same where the model of rounded activations, which is that of 3.4.0 and later, is not the release's own."""


def wheels():
    """Releases with a runtime, and older ones where there is an environment for them."""
    older = [version for version in VERSIONS if version not in RELEASES and ReleaseEnvironments().find(version)]
    return [*map(pytest.param, older), *each_release()]


def linears(storages: dict[str, tuple[int, Storage]]) -> Graph:
    """A linear layer for each storage of rows of a length, on one input for each length, as MNN operators."""
    graph, made = Graph("linears", {"": 24}), np.random.default_rng(0)
    rows, packed, ends = graph.add_dim(Dim("rows", 1, 64)), {}, []
    for name, (columns, _) in storages.items():
        if columns not in packed:
            x = graph.add_input(f"x{columns}", TensorType(F32, (rows, columns, 1, 1)))
            attrs = {"source": "NCHW", "dest": "NC4HW4"}
            packed[columns] = graph.add("mnn.ConvertTensor", [x], attrs, types=[x.type]).output
        weight = made.normal(0.2, 1, (columns, OUT)).astype(np.float32)
        bias = made.normal(0, 1, OUT).astype(np.float32)
        inputs = [graph.add_const(f"{name}.{part}", InlineTensor(data)) for part, data in (("w", weight), ("b", bias))]
        type_ = TensorType(F32, (rows, OUT, 1, 1))
        product_ = graph.add("mnn.Convolution", [packed[columns], *inputs], {}, types=[type_])
        attrs = {"source": "NC4HW4", "dest": "NCHW"}
        ends.append(graph.add("mnn.ConvertTensor", [product_.output], attrs, outputs=[name], types=[type_]).output)
    graph.set_outputs(ends)
    graph.set_fact(PrecisionPlan.name, PrecisionPlan({f"{name}.w": item for name, (_, item) in storages.items()}))
    PassManager("insert-qdq").run(graph)
    return graph


class Linears:
    """A written model of linear layers, its inputs, and what it computes by the definitions of the operators."""

    def __init__(self, folder: Path, storages: dict[str, tuple[int, Storage]]) -> None:
        graph = linears(storages)
        self.path, self.names = folder / MODEL, [value.name for value in graph.outputs]
        layout = plan_layout(graph)
        with ThreadPoolExecutor(1) as pool:
            fill(folder / WEIGHTS, layout.nbytes, weight_jobs(layout, folder / WEIGHTS), pool)
        native.json_to_mnn(build_net(graph, layout), self.path)
        made = np.random.default_rng(1)
        self.feeds = {
            value.name: made.normal(0.3, 2, (max(CALLS), *value.shape[1:])).astype(np.float32) for value in graph.inputs
        }
        self.wanted = {"normal": self._results(graph)}
        simulate(graph)
        self.wanted["low"] = self._results(graph)

    def _results(self, graph: Graph) -> dict[str, np.ndarray]:
        found = {}
        for rows in CALLS:
            feeds = {name: array[:rows] for name, array in self.feeds.items()}
            found |= {f"{name}.{rows}": array for name, array in evaluate(graph, feeds).items()}
        return found

    def errors(self, version: str, memory: str) -> dict[str, float]:
        """Largest difference by output, in parts of the largest number; infinite where nothing came out."""
        interpreter = interpreters().get(version) or ReleaseEnvironments().find(version)
        request = {"model": str(self.path), "inputs": list(self.feeds), "outputs": self.names, "calls": CALLS}
        ended = native.run_child(RUNNER, request, self.feeds, interpreter=interpreter or sys.executable, timeout_s=60)
        found = dict.fromkeys(self.names, 0.0)
        for key, wanted in self.wanted[memory].items():
            got = ended.arrays.get(f"{memory}/{key}")
            error = np.inf if got is None else np.abs(got.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
            name = key.rpartition(".")[0]
            found[name] = max(found[name], float(np.nan_to_num(error, nan=np.inf)))
        return found


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Every width and form, in blocks of usual sizes, of the unit, and one block per row of any length."""
    storages = {
        f"w{bits}.{'s' if symmetric else 'a'}.{block}.{columns}": (
            columns,
            Storage(bits=bits, block=block, symmetric=symmetric),
        )
        for bits, symmetric, (block, columns) in product(
            PROFILES["3.0.0"].widths, (False, True), ((32, 128), (64, 128), (128, 256), (0, 128), (4, 116), (0, 118))
        )
    }
    return Linears(tmp_path_factory.mktemp("sound"), storages)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Blocks that are no multiple of the unit, of 8-bit codes with zeros."""
    storages = {f"b{block}": (120, Storage(bits=8, block=block)) for block in (2, 6, 30)}
    return Linears(tmp_path_factory.mktemp("broken"), storages)


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("version", wheels())
def test_every_width_form_and_block_of_the_profile_is_computed_right(sound, version, memory):
    release = PROFILES[version]
    errors = sound.errors(version, memory)
    wrong = {name for name in errors if memory == "low" and not release.ragged_rows and name.endswith("a.0.118")}
    bound = BOUND if memory == "normal" or version in RELEASES else ROUNDED
    assert {name for name, error in errors.items() if error > bound} == wrong
    bits = {int(name[1]) for name in errors.keys() - wrong}
    assert bits == set(release.widths) and release.symmetric and release.block_unit == 4


@pytest.mark.parametrize("version", wheels())
def test_blocks_that_are_no_multiple_of_the_unit_need_expanded_weights(broken, version):
    assert PROFILES[version].block_unit == 4
    assert max(broken.errors(version, "normal").values()) < BOUND
    assert min(broken.errors(version, "low").values()) > 2 * ROUNDED


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """Models whose embedding rows are read from the logits matrix, by width."""
    folder = tmp_path_factory.mktemp("tied")
    pipelines = {4: "int8{logits-bits=4}", 8: "int8", 16: "fp16"}
    return {bits: compiled(EXAMPLE, folder / str(bits), text) for bits, text in pipelines.items()}


@pytest.mark.parametrize("version", each_release())
def test_embedding_rows_of_each_width_are_read_right(tied, version):
    assert set(tied) == set(PROFILES[version].row_widths)
    for bits, folder in tied.items():
        assert not list(folder.glob("embeddings*")) and MnnModel(folder).llm_config["tie_embeddings"][3] == bits
        (result,) = run_actions(folder, version, [pieces(IDS)])
        assert np.abs(logits_of(result) - decoded_reference(folder, "", IDS)).max() <= BAR


# ---- what is refused ----


def matrix(bits: int, columns: int, block: int, symmetric: bool = False) -> Matrix:
    storage = Storage(bits=bits, block=block, symmetric=symmetric)
    weight = SimpleNamespace(name="w", rows=OUT, columns=columns, block=block or columns, bits=bits, storage=storage)
    size = columns * bits * OUT // 8
    return Matrix(weight=weight, offset=0, header_bytes=22, code_bytes=size, alpha_bytes=0, bias=None, bias_bytes=0)


def refusal(name: str, *form) -> str:
    """The message that refuses a storage for a target; empty when it is taken."""
    try:
        check_storage(Layout({"node": matrix(*form)}), target(name))
    except LadingError as error:
        assert error.code == "B697" and error.diagnostics[0].hint
        return str(error)
    return ""


def test_what_every_release_computes_right_is_taken():
    for name, bits, block, symmetric in product(("portable", "3.0.0"), range(2, 9), (0, 4, 32, 128), (False, True)):
        assert refusal(name, bits, 256, block, symmetric) == ""
    assert refusal("portable", 4, 118, 0) == ""


@pytest.mark.parametrize("block", [2, 6, 30])
def test_blocks_that_are_no_multiple_of_the_unit_are_refused(block):
    message = refusal("portable", 4, 120, block)
    assert f"blocks of {block}" in message and all(version in message for version in RELEASES)


def test_rows_of_odd_length_are_refused_where_zeros_make_them_wrong():
    assert "one block per row of 118" in refusal("3.0.0", 8, 118, 0)
    assert refusal("3.0.0", 8, 118, 0, True) == refusal("3.1.0", 8, 118, 0) == refusal("3.0.0", 8, 120, 0) == ""


def step(monkeypatch, name: str, since: str, value) -> None:
    """Let a field have another value from a release on."""
    steps = (*profiles.FIELDS[name].steps, Step(since, value, "made up"))
    monkeypatch.setitem(profiles.FIELDS, name, FieldHistory(name, "", steps))


def test_widths_and_forms_follow_the_profiles(monkeypatch):
    step(monkeypatch, "widths", "3.6.0", (8, 4))
    step(monkeypatch, "symmetric", "3.6.1", False)
    step(monkeypatch, "block_unit", "3.5.0", 6)
    assert "MNN 3.6.0, 3.6.1:" in refusal("portable", 3, 96, 24) and refusal("<3.6,>3.2", 3, 96, 24) == ""
    assert "MNN 3.6.1:" in refusal("portable", 4, 96, 24, True)
    every = target("portable")
    assert (every.widths, every.symmetric, every.block_unit) == ((4, 8), False, 12)
    assert target("3.6.1").widths == (8, 4) and target(">=3.2,<3.5").block_unit == 4


def test_targets_have_what_all_their_releases_have():
    every, old = target("portable"), target("3.1.0")
    assert every.widths == tuple(range(2, 9)) and every.symmetric and every.block_unit == 4
    assert (every.row_widths, old.row_widths, target("3.0.0").row_widths) == ((4, 8, 16), (4, 8), ())
    assert target(">=3.1,<3.3").row_widths == (4, 8)
