"""What a path is that holds no MNN model, and which command takes it."""

from __future__ import annotations

import json
import os
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ir.base.diag import LadingError

_MNN_NAMES = ("llm_config.json", "llm.mnn.weight", "tokenizer.mtok")
"""Files that only a model directory has; one of them makes a folder such a directory, if an incomplete one."""

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_OTHER = {
    ".tflite": "a TensorFlow Lite model", ".pb": "a TensorFlow graph", ".mlmodel": "a Core ML model",
    ".caffemodel": "a Caffe model", ".engine": "a TensorRT engine", ".h5": "a Keras model", ".rkllm": "an RKLLM model",
    ".litertlm": "a LiteRT model", ".task": "a MediaPipe model",
}  # fmt: skip
"""Formats of other runtimes."""


def model_of(path: Path) -> Path:
    """The model directory, ``.mnn`` file or ONNX file that a path means: a file of a directory stands for the directory.

    Raises:
        LadingError: B711 nothing is there, U950 nothing that is known, U955 something that another command takes.
    """
    if not _exists(path):
        raise _absent(path)
    if path.is_dir():
        _check_folder(path)
        return _module_of(path) or path
    if not path.is_file():
        raise LadingError("U950", "this is neither a folder nor a regular file", where=str(path))
    if path.suffix.lower() in (".mnn", ".onnx"):
        return path
    if _is_mnn_folder(path.parent) and _belongs(path):
        return path.parent
    _check_file(path)
    return path


def _module_of(folder: Path) -> Path | None:
    """The ``.mnn`` file of a folder with a model that applications load by themselves; None for a model directory."""
    from backends.mnn.read.model_folder import Subject

    found = sorted(folder.glob("*.mnn"))
    return found[0] if len(found) == 1 and Subject(found[0]).is_module else None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise LadingError("B711", f"cannot be looked at: {error.strerror}", where=str(path)) from error


def _absent(path: Path) -> LadingError:
    name = str(path)
    hint = ""
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        hint = f"is it a model of the Hugging Face hub? {_line('lading compile', name)}"
    return LadingError("B711", "there is no such file or folder", where=name, hint=hint)


def _belongs(path: Path) -> bool:
    """A file that model directories have."""
    return path.name.endswith((".mnn.weight", ".mtok")) or path.name in (
        "config.json", "config.3.4.json", "llm_config.json", "contract.json", "tokenizer.txt", "embeddings_bf16.bin",
    )  # fmt: skip


def _line(command: str, path: str | Path, *, out: str = "") -> str:
    """A line for a shell."""
    text = str(path)
    words = [*command.split(), f"./{text}" if text.startswith("-") else text]
    return shlex.join([*words, *(["-o", out] if out else [])])


def _compiling(folder: Path) -> str:
    return _line("lading compile", folder, out=f"build/{folder.resolve().name or 'model'}")


def _told(path: Path, what: str, hint: str) -> LadingError:
    return LadingError("U955", f"this is {what}, not an MNN model", where=str(path), hint=hint)


# ---- folders ----


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise LadingError("B711", f"cannot be listed: {error.strerror}", where=str(folder)) from error


def _is_mnn_folder(folder: Path) -> bool:
    names = _names(folder)
    return any(name.endswith(".mnn") or name in _MNN_NAMES for name in names) or "llm_model" in _config(folder)


def _config(folder: Path) -> dict:
    """``config.json`` where it is a JSON object, else empty."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_folder(folder: Path) -> None:
    """Raise what a folder is that is no model directory."""
    if _is_mnn_folder(folder):
        return
    names = _names(folder)
    if not names:
        raise LadingError("U950", "the folder is empty", where=str(folder))
    for check in (_adapter, _checkpoint, _gguf, _onnx, _hub_repository, _without_weights, _inside):
        if (error := check(folder, names)) is not None:
            raise error
    hint = "a model directory has config.json, llm_config.json, llm.mnn and llm.mnn.weight"
    raise LadingError("U950", f"the folder holds no model: {_few(names)}", where=str(folder), hint=hint)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _adapter(folder: Path, names: Sequence[str]) -> LadingError | None:
    if "adapter_config.json" not in names:
        return None
    hint = (
        "merge it into the model that it was trained for (merge_and_unload in peft), save that, and compile the result"
    )
    return _told(folder, "an adapter (LoRA)", hint)


def _checkpoint(folder: Path, names: Sequence[str]) -> LadingError | None:
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        family = _config(folder).get("model_type")
        kind = f"a checkpoint ({family})" if isinstance(family, str) and family else "a checkpoint"
        return _told(folder, kind, _compiling(folder))
    if any(name.endswith((*_PICKLED, ".bin.index.json")) and not name.startswith("training") for name in names):
        hint = "pickled weights can run code and are never opened: load it with transformers, save_pretrained, and compile that"
        return _told(folder, "a checkpoint with pickled weights", hint)
    return None


def _gguf(folder: Path, names: Sequence[str]) -> LadingError | None:
    found = [name for name in names if name.lower().endswith(".gguf")]
    return _gguf_file(folder / found[0]) if found else None


def _gguf_file(path: Path) -> LadingError:
    hint = _line("lading compile", path, out=f"build/{path.stem or 'model'}")
    return _told(path, "a GGUF file", hint)


def _onnx(folder: Path, names: Sequence[str]) -> LadingError | None:
    found = [path for part in (folder, folder / "onnx") for path in sorted(part.glob("*.onnx"))]
    if not found:
        return None
    return _told(
        folder,
        "a folder with ONNX files",
        f"{_line('lading doctor', found[0])}, or {_line('lading compile', found[0])}",
    )


def _hub_repository(folder: Path, names: Sequence[str]) -> LadingError | None:
    snapshots = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    if not snapshots:
        return None
    return _told(
        folder, "a repository of the Hugging Face cache", f"its newest files: {_line('lading doctor', snapshots[-1])}"
    )


def _without_weights(folder: Path, names: Sequence[str]) -> LadingError | None:
    config = _config(folder)
    if "model_type" in config or "architectures" in config:
        hint = "download the weights too (.safetensors), then: " + _compiling(folder)
        return _told(folder, "a checkpoint without its weights", hint)
    if any(name in _TOKENIZERS for name in names):
        return _told(folder, "a tokenizer without a model", "give the folder of the whole model")
    return None


def _inside(folder: Path, names: Sequence[str]) -> LadingError | None:
    """Folders that were unpacked into another folder."""
    models = [name for name in names if (folder / name).is_dir() and os.access(folder / name, os.R_OK | os.X_OK)]
    models = [name for name in models if _is_mnn_folder(folder / name)]
    if not models:
        return None
    what = "a folder with a model in it" if len(models) == 1 else f"a folder with {len(models)} models in it"
    return _told(folder, what, _line("lading doctor", folder / models[0]))


# ---- files ----


def _check_file(path: Path) -> None:
    """Raise what a file is that is neither a graph of MNN nor ONNX."""
    from backends.mnn.read.net_file import read_net

    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise LadingError("B711", f"cannot be read: {error.strerror}", where=str(path)) from error
    if (error := _known_file(path, head)) is not None:
        raise error
    try:
        read_net(path)
    except LadingError:
        message = "this is neither a model directory, nor an .mnn file, nor an ONNX file"
        raise LadingError("U950", message, where=str(path)) from None


def _known_file(path: Path, head: bytes) -> LadingError | None:
    suffix, folder = path.suffix.lower(), path.parent
    if head.startswith(b"version https://git-lfs"):
        return _told(path, "a Git LFS pointer", "run git lfs pull in the repository, or download the file itself")
    if head.startswith(b"GGUF") or suffix == ".gguf":
        return _gguf_file(path)
    if suffix == ".safetensors":
        return _told(path, "a weight file of a checkpoint", _compiling(folder))
    if path.name in ("config.json", *_TOKENIZERS) and any(folder.glob("*.safetensors")):
        return _told(path, "a file of a checkpoint", _compiling(folder))
    if suffix in _PICKLED:
        return _told(path, "a file of pickled weights, which is never opened", "compile a checkpoint in .safetensors")
    if suffix in (".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar") or zipfile.is_zipfile(path):
        return _told(path, "an archive", "unpack it and give the folder")
    if suffix in _OTHER:
        return _told(path, _OTHER[suffix], "compile the checkpoint that it was made from: lading compile OWNER/NAME")
    return None
