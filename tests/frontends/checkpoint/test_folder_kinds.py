"""What people give as MODEL that is no checkpoint, or one that is not all there: one message that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from frontends.checkpoint.folder_kinds import quantized_as
from frontends.checkpoint.load import load
from frontends.containers.stand_ins import OPENINGS, stand_in
from frontends.onnx.load import load as load_onnx
from frontends.text.tokenizer import open_tokenizer
from ir.base.diag import LadingError
from tests.support.checkpoints import make_checkpoint, write_safetensors
from tools.compile.command import main
from tools.compile.job import EXAMPLE

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 6567012\n".format("ab" * 32)
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"


def refused(folder: Path, code: str, says: str = "") -> LadingError:
    """The error that loading ends with."""
    with pytest.raises(LadingError) as caught:
        load(folder)
    assert caught.value.code == code, caught.value
    assert says in str(caught.value)
    return caught.value


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    return make_checkpoint(tmp_path / "model", "qwen2")


# ---- files that are not there although their names are ----


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "generation_config.json"])
def test_a_pointer_of_git_lfs_is_named(source: Path, name: str) -> None:
    (source / name).write_text(POINTER)
    error = refused(source, "F563", f"{name} is a Git LFS pointer")
    assert len(error.diagnostics) == 1 and "git lfs pull" in error.diagnostics[0].hint


def test_all_pointers_are_named_in_one_message(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", shards=3)
    names = [*sorted(path.name for path in source.glob("*.safetensors")), "tokenizer.json"]
    for name in names:
        (source / name).write_text(POINTER)
    error = refused(source, "F563", ", ".join(names))
    assert len(error.diagnostics) == 1 and "4 files" in error.diagnostics[0].message


def test_a_pointer_as_onnx_model_or_as_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text(POINTER)
    with pytest.raises(LadingError, match="git lfs pull"):
        load_onnx(tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with pytest.raises(LadingError, match=r"tokenizer\.json is a Git LFS pointer"):
        open_tokenizer(tmp_path)
    for option, value in (("--tokenizer", tmp_path), ("--text", tmp_path / "tokenizer.json")):
        found = CliRunner().invoke(main, [str(EXAMPLE), option, str(value), "-o", str(tmp_path / "out")])
        assert found.exit_code == 1 and "error[F563]" in found.stderr and not (tmp_path / "out").exists()


def test_a_pointer_in_the_place_of_external_data(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])], [weight],
    )  # fmt: skip
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert load_onnx(path)
    (tmp_path / "w.bin").write_text(POINTER)
    with pytest.raises(LadingError, match=r"w\.bin is a Git LFS pointer"):
        load_onnx(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (PAGE, "a web page"),
        ("", "is empty"),
        ("<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML document"),
        ("Entry not found", "Entry not found"),
        ('{"error": "gated"}', "an error message"),
        ("GGUF\x03\0\0\0", "a GGUF file"),
        ("PK\x03\x04rest", "a zip archive"),
        ("/annex/objects/SHA256-s1--ab\n", "a git-annex pointer"),
    ],
)
def test_what_a_failed_download_leaves_is_named(source: Path, content: str, says: str) -> None:
    (source / "model.safetensors").write_text(content)
    refused(source, "F563" if "annex" in says else "F564", says)


def test_sound_files_are_no_stand_ins(source: Path) -> None:
    assert {stand_in(path) for path in (*source.iterdir(), *EXAMPLE.iterdir())} == {None}
    (source / "README.txt").write_text("")
    (source / "added_tokens.json").write_text('{"error": 3}')
    (source / "trainer_state.json").write_text("")
    (source / "consolidated.safetensors").write_text(POINTER)
    assert load(source)
    assert stand_in(source / "absent.json") is None and stand_in(source) is None
    assert len({opening for opening, *_ in OPENINGS}) == len(OPENINGS)


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "model", "llama", shards=5)
    names = sorted(path.name for path in source.glob("*.safetensors"))
    for name in names[1:4]:
        (source / name).unlink()
    error = refused(source, "F524", ", ".join(names[1:4]))
    assert "names 5 files, and 3 of them are missing" in error.diagnostics[0].message


def test_files_without_tensors(source: Path) -> None:
    (source / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    refused(source, "F512", "no tensor at all")


# ---- folders of other kinds ----


def test_an_adapter_is_named_with_its_base(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_safetensors(
        folder / "adapter_model.safetensors", {"base_model.model.x.lora_A.weight": np.ones((2, 2), np.float32)}
    )
    record = {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(record))
    error = refused(folder, "F565", "an adapter (LORA) of 'Qwen/Qwen2.5-0.5B-Instruct'")
    assert error.diagnostics[0].hint == f"lading compile Qwen/Qwen2.5-0.5B-Instruct --lora {folder}"
    for base, word in (("", "BASE"), ("/no/such folder", "BASE"), (str(tmp_path), str(tmp_path))):
        (folder / "adapter_config.json").write_text(json.dumps({**record, "base_model_name_or_path": base}))
        assert f"compile {word} --lora" in refused(folder, "F565", "adapter").diagnostics[0].hint
    (folder / "adapter_config.json").write_text(json.dumps({**record, "peft_type": "IA3"}))
    assert "merge_and_unload" in refused(folder, "F565", "an adapter (IA3)").diagnostics[0].hint
    (folder / "adapter_config.json").write_text("[")
    refused(folder, "F565", "a model that it does not name")


def test_an_adapter_beside_its_base_is_left_alone(source: Path) -> None:
    (source / "adapter_config.json").write_text("{}")
    assert load(source)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model_index.json", "a diffusers pipeline"),
        ("zero_to_fp32.py", "a training state"),
        ("openvino_model.xml", "an OpenVINO model"),
        ("tf_model.h5", "a TensorFlow model"),
        ("tokenizer.json", "a tokenizer and no weights"),
    ],
)
def test_folders_of_other_kinds_are_named(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_text("{}")
    refused(tmp_path, "F566", says)
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "F502" if name == "tokenizer.json" else "F566")


def test_a_folder_above_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for step in (500, 1500):
        make_checkpoint(tmp_path / "runs" / f"checkpoint-{step}", "llama")
    error = refused(tmp_path / "runs", "F566", "checkpoint-500, checkpoint-1500")
    assert error.diagnostics[0].hint.endswith("checkpoint-1500")
    shutil.copytree(tmp_path / "runs" / "checkpoint-500", tmp_path / "models--a--b" / "snapshots" / "0f1e")
    refused(tmp_path / "models--a--b", "F566", "snapshots/0f1e")


@pytest.mark.parametrize(("name", "says"), [("model.onnx", "an ONNX model"), ("pytorch_model.bin", "pickled")])
def test_a_file_of_another_format_says_what_to_do(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / name).write_bytes(b"PK" if "bin" in name else b"\x08")
    refused(tmp_path / name, "F501", says)
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "F502", says)


# ---- tensors that are quantized already ----

PACKED = {
    "GPTQ": {"qweight": "i32", "qzeros": "i32", "g_idx": "i32", "scales": "f16"},
    "AWQ": {"qweight": "i32", "qzeros": "i32", "scales": "f16"},
    "bitsandbytes, 4 bits": {"weight": "u8", "weight.absmax": "u8", "weight.quant_map": "f32"},
    "bitsandbytes, 8 bits": {"weight": "i8", "SCB": "f32"},
    "compressed-tensors, packed": {"weight_packed": "i32", "weight_scale": "bf16", "weight_shape": "i64"},
    "compressed-tensors, 8 bits": {"weight": "i8", "weight_scale": "bf16"},
    "FP8": {"weight": "f8e4m3fn", "weight_scale_inv": "f32"},
    "HQQ": {"W_q": "u8", "meta": "f32"},
    "MLX": {"weight": "u32", "scales": "f16", "biases": "f16"},
    "quanto": {"weight._data": "i8", "weight._scale": "f32"},
}


@pytest.mark.parametrize("method", PACKED)
def test_quantized_tensors_are_known_without_a_configuration(method: str) -> None:
    names = {f"model.layers.0.mlp.up_proj.{ending}": dtype for ending, dtype in PACKED[method].items()}
    found = quantized_as({"model.norm.weight": "bf16", **names})
    assert found is not None and found[0] == method
    assert set(found[1]) <= set(names)


def test_plain_tensors_are_not_taken_for_quantized_ones(source: Path) -> None:
    dtypes = {"model.layers.0.mlp.up_proj.weight": "bf16", "model.layers.0.mlp.up_proj.bias": "f32", "scales": "f32"}
    assert quantized_as(dtypes) is None


def test_tensors_of_an_encoding_that_is_not_read_are_one_message(source: Path) -> None:
    tensors = {"model.embed_tokens.weight": np.ones((320, 64), np.float16)}
    for role in ("q", "k", "v", "o"):
        base = f"model.layers.0.self_attn.{role}_proj"
        tensors |= {f"{base}.W_q": np.ones((8, 8), np.uint8), f"{base}.meta": np.ones(4, np.float32)}
    write_safetensors(source / "model.safetensors", tensors)
    error = refused(source, "F535", "HQQ")
    assert len(error.diagnostics) == 1 and "4 tensors" in error.diagnostics[0].message
