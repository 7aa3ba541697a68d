"""Weights that later loads map: the same logits, and nothing written that a release maps wrong."""

from __future__ import annotations

import json
import sys

import pytest

from backends.contract import read
from backends.mnn.run.native import run_model
from backends.mnn.target.releases import PROFILES, target
from backends.mnn.write.mapped import check_mapped, check_second_load, mapped_keys
from backends.mnn.write.weight_layout import plan_layout
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint
from tests.support.runs import compiled, each_release, interpreters, pieces

pytestmark = pytest.mark.mnn
INSTALLED = "3.6.1"
LOW = {"memory": "low", "precision": "low", "thread_num": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("mapped") / "model", "qwen2", seed=3)


@pytest.fixture(scope="module")
def in_bits(source, tmp_path_factory):
    """Model directories with all layers in some bits."""
    made = {}

    def make(bits: int):
        if bits not in made:
            out = tmp_path_factory.mktemp("mapped") / f"bits{bits}"
            logits = bits if bits in (4, 8) else 8
            made[bits] = compiled(source, out, f"default{{bits={bits} logits-bits={logits} block=32 scale=f32}}")
        return made[bits]

    return make


@pytest.mark.parametrize("bits", [3, pytest.param(5, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("version", each_release())
def test_second_loads_are_as_the_profile_says(in_bits, bits, version):
    def load():
        check_second_load(in_bits(bits), LOW, interpreters()[version])

    if bits in PROFILES[version].mapped_widths:
        load()
        return
    with pytest.raises(LadingError) as caught:
        load()
    assert caught.value.code == "B794"


def test_the_configuration_names_a_folder_of_this_model_alone(source, tmp_path):
    folders = [
        compiled(source, tmp_path / name, pipeline, target=INSTALLED, mmap=True)
        for name, pipeline in (("one", "int4"), ("again", "int4"), ("other", "int8"))
    ]
    configs = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert all(config["use_mmap"] is True for config in configs)
    one, again, other = (config["tmp_path"] for config in configs)
    assert one == again != other and one.startswith(f"mnn-{INSTALLED}-")
    assert mapped_keys(folders[0], INSTALLED)["tmp_path"] == one
    runtime = read(folders[0]).runtime
    assert runtime.settings["tmp_path"] == one and {"use_mmap", "tmp_path"} <= set(runtime.requires.keys)
    plain = json.loads((compiled(source, tmp_path / "plain", "int4", target=INSTALLED) / "config.json").read_text())
    assert not {"use_mmap", "tmp_path"} & set(plain)


def test_a_verified_model_was_loaded_again(source, tmp_path, monkeypatch):
    from backends.mnn.write import mapped
    from tools.compile.job import Request, compile_model

    loaded = []
    monkeypatch.setattr(mapped, "check_second_load", lambda *given: loaded.append(given))
    compile_model(Request(str(source), tmp_path / "out", "int8", target=INSTALLED, mmap=True, kl_bar=1.0))
    assert [python for _, _, python in loaded] == [sys.executable]


@pytest.mark.parametrize(
    ("name", "memory", "pipeline", "said"),
    [
        ("portable", "low", "int4", "5 releases may lay out mapped weights in as many ways"),
        (INSTALLED, "normal", "int4", "crashes on mapped weights when memory is normal"),
        (INSTALLED, "low", "default{bits=3 logits-bits=8}", "mapped weights of 3 bits"),
        (INSTALLED, "low", "default{bits=4 logits-bits=16}", "mapped weights of 16 bits"),
        (INSTALLED, "low", "fp32", "mapped weights of 32 bits"),
    ],
)
def test_what_a_release_maps_wrong_is_refused(source, name, memory, pipeline, said):
    from frontends.checkpoint.load import load
    from passes.framework.manager import PassManager

    graph = load(source)
    PassManager(pipeline).run(graph)
    with pytest.raises(LadingError) as caught:
        check_mapped(plan_layout(graph), memory, target(name))
    assert caught.value.code == "B793" and said in str(caught.value)


def test_children_map_nothing_unless_told(source, tmp_path):
    folder = compiled(source, tmp_path / "out", "int4", target=INSTALLED, mmap=True)
    place = tmp_path / "mapped"
    for settings, kept in (({}, False), ({"use_mmap": True}, True)):
        run = run_model(folder / "config.json", [pieces([1, 2])], overrides={**LOW, **settings, "tmp_path": str(place)})
        assert run.require().results and place.exists() is kept


def test_a_refused_model_is_not_written(source, tmp_path):
    with pytest.raises(LadingError) as caught:
        compiled(source, tmp_path / "out", "int4", mmap=True)
    assert caught.value.code == "B793" and not (tmp_path / "out").exists()
