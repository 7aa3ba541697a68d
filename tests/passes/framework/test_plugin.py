"""The example plugin, installed as a package and used by the commands; and what happens when plugins disagree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from backends.contract import check_files, read
from ir.base.diag import LadingError
from ir.base.plugins import TABLES, Plugin
from ir.graph.graph import Graph
from passes.framework.registry import Registry
from tests.support.paths import ROOT
from tests.support.suite.code_record import expect_code
from tools.shared.formats import BACKENDS, FRONTENDS, Formats

SOURCE = ROOT / "examples" / "plugin"
FACTORS = [[[1.0], [2.0], [3.0]], [[1.0, -1.0]]]
MODEL = {
    "width": 2,
    "layers": [
        {"weight": [[1.0, 0.5, -1.0], [0.0, 2.0, 1.0]], "activation": "squared-relu"},
        {"factors": FACTORS, "activation": "relu"},
    ],
}


def reference(x: np.ndarray) -> np.ndarray:
    """The network of MODEL in numpy."""
    hidden = np.maximum(x @ np.array(MODEL["layers"][0]["weight"], np.float32), 0) ** 2
    left, right = (np.array(item, np.float32) for item in FACTORS)
    return np.maximum(hidden @ (left @ right), 0)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package as pip installs it, without network."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(SOURCE, folder / "source")
    site = folder / "site"
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return site


@pytest.fixture
def tool(installed, tmp_path):
    """Runs a module with the plugin on the path, in a folder with the model."""
    (tmp_path / "net.mlp").write_text(json.dumps(MODEL))

    def run(*arguments, more=()):
        path = os.pathsep.join([str(installed), *map(str, more), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


def evaluated(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]


# ---- each table is consulted ----


def test_the_plugin_uses_every_table():
    import ast

    tree = ast.parse((SOURCE / "lading_example" / "__init__.py").read_text())
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert [keyword.arg for keyword in call.keywords] == list(TABLES)


def test_from_its_frontend_through_its_pass_to_onnx(tool, tmp_path):
    result = tool("tools.opt", "net.mlp", "--passes", "squared-relu", "--verify-each", "--stats", "-o", "net.onnx")
    assert result.returncode == 0, result.stderr
    assert "product_to_squared_relu 1" in result.stderr
    model = onnx.load(tmp_path / "net.onnx")
    assert [node.op_type for node in model.graph.node] == ["MatMul", "SquaredRelu", "MatMul", "Relu"]
    assert [(item.domain, [n.op_type for n in item.node]) for item in model.functions] == [("example", ["Relu", "Mul"])]
    x = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)
    np.testing.assert_allclose(evaluated(tmp_path / "net.onnx", x), reference(x), rtol=1e-6)


def test_numbers_are_checked_by_the_operators_meaning(tool):
    result = tool("tools.opt", "net.mlp", "--passes", "squared-relu", "--check-numbers", "-o", "net.lading")
    assert result.returncode == 0, result.stderr


def test_its_recipe_survives_the_text_form(tool, tmp_path):
    assert tool("tools.opt", "net.mlp", "--passes", "infer-types", "-o", "net.lading").returncode == 0
    assert "const @layer1.weight: f32[3, 2] = example_low_rank(f32[3, 1] [" in (tmp_path / "net.lading").read_text()
    assert tool("tools.diff", "net.mlp", "net.lading", "--no-types").returncode == 0
    result = tool("tools.opt", "net.lading", "--passes", "squared-relu", "-o", "net.onnx")
    assert result.returncode == 0, result.stderr
    x = np.array([[2.0, -1.0]], np.float32)
    np.testing.assert_allclose(evaluated(tmp_path / "net.onnx", x), reference(x), rtol=1e-6)


def test_its_backend_by_suffix_and_by_name(tool, tmp_path):
    for out, more in (("net.dot", ()), ("net.txt", ("--to", "dot"))):
        result = tool("tools.opt", "net.mlp", "--passes", "squared-relu", "-o", out, *more)
        assert result.returncode == 0, result.stderr
        text = (tmp_path / out).read_text()
        assert text.startswith('digraph "net" {') and '[label="example.SquaredRelu"]' in text


def test_compile_emits_to_its_runtime(tool, tmp_path):
    result = tool("tools.compile", "net.mlp", "-o", "out", "--guard")
    assert result.returncode == 0, result.stderr
    assert "net for the toy runtime 1.0.0" in result.stdout and "run on the toy runtime" in result.stdout
    contract = read(tmp_path / "out")
    assert check_files(contract, tmp_path / "out") == []
    assert contract.target.profile == "toy" and [item.reference for item in contract.verified] == ["float"]
    assert [(item.name, item.storage.method) for item in contract.weights] == [
        ("layer0.weight", "ceiling"),
        ("layer1.weight", "ceiling"),
    ]
    assert contract.signature.inputs[0].meaning == "a row of features for each example"
    x = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)
    script = (
        f"import numpy as np, pathlib; from lading_example.toy.run import run; x = np.array({x.tolist()}, np.float32)"
    )
    (tmp_path / "use.py").write_text(f"{script}\nprint(run(pathlib.Path('out/model.toy'), x).tolist())")
    got = np.array(json.loads(tool("use").stdout), np.float32)
    np.testing.assert_allclose(got, reference(x), rtol=0.02, atol=0.05)


def test_its_target_has_limits_of_its_own(tool, tmp_path):
    for text, code, part in (("11cells", "B950", "need 12 cells"), ("much", "B951", "no target of the toy runtime")):
        result = tool("tools.compile", "net.mlp", "--to", "toy", "--target", text, "-o", "out")
        assert result.returncode == 1 and f"error[{code}]" in result.stderr and part in result.stderr
    assert tool("tools.compile", "net.mlp", "--target", "12cells", "-o", "out").returncode == 0


def test_its_codes_and_what_its_runtime_prints_are_explained(tool):
    result = tool("tools.explain", "B951")
    assert "B951: The target of the toy runtime is a number" in result.stdout and "What to do" in result.stdout, (
        result.stderr
    )
    result = tool("tools.explain", "toy: cell 70 of 64 is not there")
    assert "needs more than the 64 cells that the toy runtime has" in result.stdout, result.stderr


def test_what_its_runtime_cannot_run_is_refused(tool, tmp_path):
    result = tool("tools.compile", "net.mlp", "--passes", "squared-relu", "-o", "out")
    assert result.returncode == 1 and "MatMul is not allowed at stage toy" in result.stderr
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_wrong_are_refused(tool, tmp_path):
    coarse = "squared-relu,assign-precision{bits=2 logits-bits=2 block=0 symmetric method=ceiling},insert-qdq,lower-to-toy,dce"
    result = tool("tools.compile", "net.mlp", "--passes", coarse, "-o", "out")
    assert result.returncode == 1 and "error[V950]" in result.stderr and not (tmp_path / "out").exists()


def test_its_model_goes_to_onnx_when_asked(tool, tmp_path):
    result = tool("tools.compile", "net.mlp", "--to", "onnx", "--passes", "squared-relu", "-o", "out")
    assert result.returncode == 0, result.stderr
    x = np.array([[1.0, 2.0]], np.float32)
    np.testing.assert_allclose(evaluated(tmp_path / "out" / "model.onnx", x), reference(x), rtol=1e-6)


def test_options_that_its_backend_does_not_know_are_refused(tool):
    result = tool("tools.compile", "net.mlp", "--threads", "2", "-o", "out")
    expect_code(result.stderr, "U915")


def test_its_fact_its_stage_and_its_invariant_hold_after_its_pass(tool, tmp_path):
    pipeline = "squared-relu,lower-to-toy,dce"
    assert tool("tools.opt", "net.mlp", "--passes", pipeline, "--verify-each", "-o", "net.lading").returncode == 0
    text = (tmp_path / "net.lading").read_text()
    assert 'fact toy-layers {"count": 2}' in text and text.count("toy.Dense") == 2
    (tmp_path / "check.py").write_text(
        "import sys; from ir.text.parser import parse; from ir.verify.stages import verify\n"
        "print(verify(parse(open('net.lading').read()), 'toy'), "
        "len(verify(parse(open('net.lading').read().replace('toy-layers {\"count\": 2}', 'toy-layers {\"count\": 3}')))))"
    )
    assert tool("check").stdout.strip() == "[] 1"


def test_its_family_and_its_format_make_a_checkpoint(tool, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "example"}')
    rng = np.random.default_rng(1)
    shapes = {"model.embed_tokens": (256, 64), "lm_head": (256, 64), "model.norm": (64,)}
    for layer in range(2):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{part}_proj": (64, 64) for part in "qkvo"}
        shapes |= {
            f"{name}mlp.gate_proj": (128, 64),
            f"{name}mlp.up_proj": (128, 64),
            f"{name}mlp.down_proj": (64, 128),
        }
        shapes |= {f"{name}pre_norm": (64,), f"{name}post_norm": (64,)}
    tensors = {f"{name}.weight": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / "weights.npz", **tensors)
    result = tool("tools.compile", "model", "--to", "onnx", "--passes", "onnx-fp32", "-o", "out")
    assert result.returncode == 0, result.stderr
    contract = read(tmp_path / "out")
    assert contract.model.family == "example" and [item.file for item in contract.sources] == ["weights.npz"]


def test_other_tools_read_its_format(tool):
    result = tool("tools.inspect", "net.mlp")
    assert result.returncode == 0 and "example_low_rank of inline" in result.stdout, result.stdout + result.stderr


def test_it_is_listed_with_its_package(tool):
    listed = json.loads(tool("tools.compile", "--list-passes", "--json").stdout)
    (one,) = [item for item in listed["passes"] if item["name"] == "fuse-squared-relu"]
    assert one["package"] == "lading-example" and one["options"][0]["name"] == "powers"
    assert listed["pipelines"]["squared-relu"] == "canonicalize,fuse-squared-relu,dce"


def test_its_own_cases_pass(tool, installed):
    cases = SOURCE / "cases" / "fuse_squared_relu.lading"
    quiet = ("-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", installed, "-c", os.devnull)
    result = tool("pytest", *quiet, cases)
    assert result.returncode == 0 and "3 passed" in result.stdout, result.stdout + result.stderr


def test_what_is_wrong_with_its_files_is_a_coded_message(tool, tmp_path):
    (tmp_path / "net.mlp").write_text('{"width": 2, "layers": [{"weight": [[1.0]], "activation": "swish"}]}')
    result = tool("tools.opt", "net.mlp", "--passes", "dce")
    expect_code(result.stderr, "U910")
    assert result.returncode == 1 and "unknown activation 'swish'" in result.stderr


def test_commands_that_do_not_need_its_pass_do_not_load_it(tool, installed):
    moved = installed / "lading_example" / "fuse.py"
    broken = installed / "lading_example" / "fuse.away"
    moved.rename(broken)
    try:
        assert tool("tools.opt", "net.mlp", "--passes", "dce").returncode == 0
        result = tool("tools.opt", "net.mlp", "--passes", "fuse-squared-relu")
        expect_code(result.stderr, "P330")
        assert result.returncode == 1 and "lading-example" in result.stderr
    finally:
        broken.rename(moved)


# ---- clashes ----


def other(folder: Path, tables: str, name: str = "lading-rival") -> Path:
    """Another plugin package with the given tables."""
    module = name.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(f"from ir.base.plugins import Plugin\nPLUGIN = Plugin({tables})\n")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[lading.plugins]\nrival = {module}:PLUGIN\n")
    return folder


@pytest.mark.parametrize(
    "tables",
    [
        "passes={'fuse-squared-relu': 'a:B'}",
        "pipelines={'squared-relu': 'dce'}",
        "pipelines={'fuse-squared-relu': 'dce'}",
        "ops={'example.SquaredRelu': 'a:B'}",
        "frontends={'mlp': 'a:B'}",
        "backends={'dot': 'a:B'}",
        "recipes={'example_low_rank': 'a:B'}",
    ],
)
def test_a_name_of_two_packages_is_an_error_that_names_both(tables, tool, tmp_path):
    result = tool("tools.opt", "net.mlp", "--passes", "dce", more=[other(tmp_path / "rival", tables)])
    expect_code(result.stderr, "P331")
    assert result.returncode == 1, result.stderr
    assert "lading-example" in result.stderr and "lading-rival" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("plugin", "name"),
    [
        (Plugin(frontends={"onnx": object()}), "onnx"),
        (Plugin(backends={"lading": object()}), "lading"),
        (Plugin(passes={"fold": object()}), "fold"),
    ],
)
def test_built_in_names_are_taken(plugin, name):
    with pytest.raises(LadingError, match=f"'{name}' is claimed by lading and by pkg-new") as caught:
        registry = Registry()
        registry.add(plugin, "pkg-new")
        Formats(registry)
    assert caught.value.code == "P331"


# ---- formats of plugins ----


class Odd:
    """A frontend and backend for one suffix."""

    suffixes = (".odd",)

    def load(self, path):
        return Path(path).read_text()

    def write(self, graph, path):
        path.write_text(graph.name)


def formats(**tables) -> Formats:
    registry = Registry()
    for package, plugin in tables.items():
        registry.add(plugin, package)
    return Formats(registry)


def test_two_formats_for_one_suffix_have_to_be_chosen_from():
    plugins = [Plugin(frontends={name: Odd()}, backends={name: Odd()}) for name in "ab"]
    two = formats(one=plugins[0], two=plugins[1])
    for choose, option in ((two.frontend_for, "--from"), (two.backend_for, "--to")):
        with pytest.raises(LadingError, match=r"a \(one\), b \(two\)") as caught:
            choose("x.odd")
        assert caught.value.code == "U913" and option in str(caught.value)


def test_a_format_with_parts_missing_is_blamed_on_its_package():
    with pytest.raises(LadingError, match=r"needs load\(\) and a tuple of suffixes") as caught:
        formats(pkg=Plugin(frontends={"a": object()})).frontend("a")
    assert caught.value.code == "U912" and "pkg" in str(caught.value)


def test_a_frontend_that_gives_no_graph_is_blamed_on_its_package(tmp_path):
    (tmp_path / "x.odd").write_text("text")
    with pytest.raises(LadingError, match="did not return") as caught:
        formats(pkg=Plugin(frontends={"a": Odd()})).read(str(tmp_path / "x.odd"))
    assert caught.value.code == "U912" and "pkg" in str(caught.value)


def test_a_backend_gets_a_path_without_abbreviations(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    formats(pkg=Plugin(backends={"a": Odd()})).write(Graph("named"), "~/x.odd")
    assert (tmp_path / "x.odd").read_text() == "named"


def test_built_in_formats_have_the_parts_that_plugins_need():
    assert all(callable(item.load) and isinstance(item.suffixes, tuple) for item in FRONTENDS.values())
    assert all(callable(item.write) and isinstance(item.suffixes, tuple) for item in BACKENDS.values())
