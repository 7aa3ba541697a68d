"""Folders that people take for checkpoints, and what they are: told by the names of their files."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontends.configuration.keys import shown
from ir.base.diag import LadingError

ADAPTER = "adapter_config.json"

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

MAX_ADAPTER_BYTES = 1 << 20


@dataclass(frozen=True)
class Kind:
    """One kind of folder: files of which one is there, what it is, and what to do."""

    files: tuple[str, ...]
    what: str
    hint: str


KINDS: tuple[Kind, ...] = (
    Kind(
        ("model_index.json",),
        "a diffusers pipeline, which makes pictures",
        "language models are compiled; give the folder of one, such as the pipeline's text encoder if it is one",
    ),
    Kind(
        ("zero_to_fp32.py", "latest", "pytorch_model_fsdp_0", "mp_rank_00_model_states.pt"),
        "a training state in parts, not a checkpoint",
        "put it together with `python zero_to_fp32.py . OUT --safe_serialization`, or save the model once more",
    ),
    Kind(
        ("openvino_model.xml",),
        "an OpenVINO model",
        "start from the safetensors checkpoint that it was made from",
    ),
    Kind(
        ("tf_model.h5", "saved_model.pb"),
        "a TensorFlow model",
        "load it with transformers and save it again as safetensors",
    ),
)
"""In the order in which they are looked for."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def refuse_adapter(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder that holds an adapter and no weights of a model.

    Raises:
        LadingError: F565.
    """
    weights = [name for name in names if name.endswith(".safetensors") and name not in ADAPTER_WEIGHTS]
    if ADAPTER not in names or weights:
        return
    record = _read(folder / ADAPTER)
    base, kind = record.get("base_model_name_or_path"), record.get("peft_type")
    of = shown(base) if isinstance(base, str) and base else "a model that it does not name"
    sort = kind[:20] if isinstance(kind, str) else "PEFT"
    if sort == "LORA":
        hint = f"lading compile {_base_word(base)} --lora {shlex.quote(str(folder))}"
    else:
        hint = (
            f"merge it into its base and compile the result: with peft, PeftModel.from_pretrained(base, {shown(str(folder))})"
            ".merge_and_unload().save_pretrained('merged')"
        )
    raise LadingError("F565", f"this is an adapter ({sort}) of {of}, not a model by itself", str(folder), hint)


def _base_word(base: Any) -> str:
    """The base of an adapter as a command takes it; a placeholder where it is neither here nor a hub name."""
    if isinstance(base, str) and (re.fullmatch(r"[\w.-]+/[\w.-]+", base) or os.path.isdir(base)):
        return shlex.quote(base)
    return "BASE"


def refuse_other_kind(folder: Path, names: Collection[str]) -> None:
    """Refuse a folder without weights that is known for something else.

    Raises:
        LadingError: F566.
    """
    for kind in KINDS:
        if any(name in names for name in kind.files):
            raise LadingError("F566", f"this is {kind.what}", str(folder), kind.hint)
    inside = _checkpoints_inside(folder, names)
    if inside:
        some = ", ".join(inside[:4]) + (f" and {len(inside) - 4} more" if len(inside) > 4 else "")
        hint = f"give one of them, such as {folder / inside[-1]}"
        raise LadingError("F566", f"the checkpoint is not here but in a folder below: {some}", str(folder), hint)
    if (
        "config.json" not in names
        and any(name in names for name in TOKENIZER_FILES)
        and not any(name.endswith((".bin", ".gguf", ".pt")) for name in names)
    ):
        hint = "give the folder with the weights too; --tokenizer takes this one"
        raise LadingError("F566", "this folder holds a tokenizer and no weights", str(folder), hint)


def _checkpoints_inside(folder: Path, names: Collection[str]) -> Sequence[str]:
    """Folders one or two levels below that hold a configuration and weights, the latest last."""
    found = []
    for name in sorted(names, key=lambda name: (len(name), name)):
        below = folder / name
        inner = [below, *(sorted(below.iterdir()) if name == "snapshots" and below.is_dir() else ())]
        for place in inner:
            try:
                files = os.listdir(place) if place.is_dir() else []
            except OSError:
                continue
            if "config.json" in files and any(file.endswith(".safetensors") for file in files):
                found.append(str(place.relative_to(folder)))
    return found


def _read(path: Path) -> dict[str, Any]:
    """The JSON object of a small file; empty for whatever is none."""
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_ADAPTER_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


# ---- quantized tensors ----


@dataclass(frozen=True)
class Packing:
    """How tensors of a quantized checkpoint are told: endings of names that all occur, and one element type."""

    name: str
    endings: tuple[str, ...]
    dtypes: tuple[str, ...] = ()


PACKINGS: tuple[Packing, ...] = (
    Packing("GPTQ", (".qweight", ".qzeros", ".g_idx")),
    Packing("AWQ", (".qweight", ".qzeros", ".scales")),
    Packing("GPTQ or AWQ", (".qweight",)),
    Packing("bitsandbytes, 4 bits", (".absmax", ".quant_map")),
    Packing("bitsandbytes, 4 bits", (".absmax", ".quant_state.bitsandbytes__nf4")),
    Packing("bitsandbytes, 4 bits", (".absmax", ".quant_state.bitsandbytes__fp4")),
    Packing("bitsandbytes, 8 bits", (".SCB",)),
    Packing("compressed-tensors, packed", (".weight_packed", ".weight_scale")),
    Packing("HQQ", (".W_q",)),
    Packing("AQLM", (".codebooks", ".codes")),
    Packing("quanto", (".weight._data", ".weight._scale")),
    Packing("MLX", (".scales", ".biases"), ("u32",)),
    Packing("FP8", (".weight_scale_inv",), ("f8e4m3fn", "f8e5m2")),
    Packing("FP8", (".weight_scale",), ("f8e4m3fn", "f8e5m2")),
    Packing("FP8", (".weight",), ("f8e4m3fn", "f8e5m2", "f8e4m3fnuz", "f8e5m2fnuz")),
    Packing("compressed-tensors, 8 bits", (".weight_scale",), ("i8",)),
    Packing("MXFP4 or NVFP4", (".weight",), ("f4e2m1",)),
)
"""In the order in which they are looked for."""


def quantized_as(dtypes: dict[str, str]) -> tuple[str, list[str]] | None:
    """The format of a quantized checkpoint and the tensors that show it; None for plain numbers.

    Args:
        dtypes: element type of each tensor by its name.
    """
    for packing in PACKINGS:
        shown_by = [name for name in dtypes if name.endswith(packing.endings)]
        if not all(any(name.endswith(ending) for name in shown_by) for ending in packing.endings):
            continue
        if packing.dtypes:
            shown_by = [name for name, dtype in dtypes.items() if dtype in packing.dtypes]
        if shown_by:
            return packing.name, shown_by
    return None


def refuse_quantized(dtypes: dict[str, str], folder: Path) -> None:
    """Refuse tensors of an encoding that is not read, whatever the configuration says.

    Raises:
        LadingError: F535.
    """
    found = quantized_as(dtypes)
    if found is None:
        return
    method, names = found
    message = (
        f"the checkpoint is quantized ({method}) in a way that is not read: {len(names)} tensors such as {names[0]} are"
    )
    raise LadingError("F535", message, str(folder), "start from the original bf16, fp16 or fp32 checkpoint")


__all__ = ["quantized_as", "refuse_adapter", "refuse_other_kind", "refuse_quantized"]
