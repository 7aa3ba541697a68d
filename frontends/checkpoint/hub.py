"""Where a model lives: a folder or GGUF file on this machine, or a repository on the Hugging Face Hub.

Only weights in safetensors form, JSON and tokenizer files are fetched; code and pickled weights never are, and nothing
that was fetched is executed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from frontends.checkpoint.folder_kinds import refuse_adapter, refuse_other_kind
from frontends.containers.formats import Safetensors, format_of
from frontends.containers.gguf import first_parts, is_gguf
from frontends.containers.links import LINK
from frontends.containers.stand_ins import require_present, require_real
from ir.base.diag import LadingError

DOWNLOAD = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.md", "LICENSE*", "NOTICE*")
"""File patterns that are downloaded."""

LEAVE = (
    *("*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.onnx"),
    *("original/*", "onnx/*", "consolidated*.safetensors"),
)
"""File patterns that are not, even where the first list would take them: code, other formats, second copies."""

OTHER_FORMATS = {
    ".bin": "pickled PyTorch weights; load them with transformers and save them again as safetensors",
    ".pt": "pickled PyTorch weights; load them and save them again as safetensors",
    ".pth": "pickled PyTorch weights; load them and save them again as safetensors",
    ".gguf": "GGUF models, one file each; give one of them instead of the folder",
    ".onnx": "an ONNX model; give the .onnx file itself instead of the folder",
    ".h5": "TensorFlow weights; load them with transformers and save them again as safetensors",
    ".msgpack": "Flax weights; load them with transformers and save them again as safetensors",
    ".mnn": "an MNN model, which is an output of this compiler; start from the checkpoint it was made from",
}
"""What a folder without safetensors may hold instead, and what to do about it."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Path:
    """The folder, as an absolute path, that holds the checkpoint `model`.

    Args:
        model: an existing folder, a GGUF file, or a hub name ``owner/name``. A folder wins when both could be meant.
        revision: branch, tag or commit of a hub repository.
        cache_dir: where downloads are kept; None means the hub client's own cache.
        offline: use the cache only.

    Raises:
        LadingError: F500 neither folder nor hub name, F501 a file, F502 no safetensors, F503 no ``config.json``,
            F504 no such repository, F505 no access, F506 no network and nothing cached, F507 other download
            failures, F508 no such revision, F509 a revision of a folder; `check_folder` for what is in it.
    """
    name = os.fspath(model)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if revision is not None:
            message = f"revision {revision!r} was asked for, but the model is a folder on this machine"
            raise LadingError("F509", message, name, "leave the revision out, or give the hub name owner/name")
        return _folder_of_gguf(Path(os.path.abspath(path))) or check_folder(Path(os.path.abspath(path)))
    if not os.path.isdir(path) and (path.lower().endswith(".gguf") or is_gguf(Path(path))):
        return unfold(Path(path))
    if os.path.lexists(path):
        if Path(path).suffix in OTHER_FORMATS or path.endswith(".safetensors"):
            require_real(Path(path))
        hint = "give the folder that holds config.json"
        if Path(path).suffix in OTHER_FORMATS:
            hint = f"{Path(path).suffix} files are {OTHER_FORMATS[Path(path).suffix]}"
        raise LadingError("F501", "the model must be a checkpoint folder; this is a file", name, hint)
    if not HUB_NAME.fullmatch(name):
        raise LadingError("F500", "no such folder", name, "a model on the Hugging Face Hub is written owner/name")
    return check_folder(download(name, revision, cache_dir, offline), name)


def check_folder(folder: Path, repository: str = "") -> Path:
    """Return a folder that has a configuration and weights that are read.

    `repository` is the hub name that the folder is a copy of, if it is one.

    Raises:
        LadingError: F502 no weights, F503 no configuration, F563 or F564 files that are not there although their names
            are, F565 an adapter, F566 a folder of another kind.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise LadingError("F500", f"the folder cannot be read: {error.strerror}", str(folder)) from error
    require_present(folder, names)
    refuse_adapter(folder, names)
    if not any(name.endswith(".safetensors") for name in names) and isinstance(format_of(folder), Safetensors):
        if not repository:
            refuse_other_kind(folder, names)
        message = f"the folder has no .safetensors files{_instead(names)}"
        advice = _advice(names)
        if repository:
            message = "the repository has no .safetensors files"
            advice = "weights in other formats are not downloaded; look for a converted copy of the model"
        raise LadingError("F502", message, repository or str(folder), advice)
    if "config.json" not in names:
        hint = "copy the config.json of the model into the folder; its weights alone do not say how to compute"
        raise LadingError("F503", "the folder has no config.json", str(folder), hint)
    return folder


def _folder_of_gguf(folder: Path) -> Path | None:
    """What the one GGUF model of a folder without other weights is laid out in; None for other folders."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    found = first_parts(names)
    if len(found) != 1 or LINK in names or any(name.endswith(".safetensors") for name in names):
        return None
    return unfold(folder / found[0])


def unfold(path: Path) -> Path:
    """The folder that a GGUF file is laid out in; errors F510 to F525 and F583 to F588."""
    from frontends.gguf.unfold import unfolded

    return unfolded(path)


def _suffixes(names: Iterable[str]) -> list[str]:
    return [suffix for suffix in OTHER_FORMATS if any(name.endswith(suffix) for name in names)]


def _instead(names: list[str]) -> str:
    found = _suffixes(names)
    return f", only {', '.join(found)}" if found else ""


def _advice(names: list[str]) -> str:
    found = _suffixes(names)
    if found:
        return f"{found[0]} files are {OTHER_FORMATS[found[0]]}"
    return "give the folder of a Hugging Face checkpoint" if names else "the folder is empty"


def download(
    name: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    offline: bool,
    patterns: Sequence[str] = DOWNLOAD,
) -> Path:
    """The folder of a hub repository with those of its files that fit the patterns; errors F500 and F504 to F508."""
    from huggingface_hub import snapshot_download

    with telling(name, revision):
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=os.fspath(cache_dir) if cache_dir is not None else None,
            local_files_only=offline,
            allow_patterns=list(patterns),
            ignore_patterns=list(LEAVE),
        )
    return Path(folder)


@contextmanager
def telling(name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into errors F500 and F504 to F508."""
    from huggingface_hub import errors

    try:
        yield
    except LadingError:
        raise
    except errors.GatedRepoError as error:
        hint = "accept the model's terms on its page and log in with `hf auth login`"
        raise LadingError("F505", "the repository needs permission, which this machine lacks", name, hint) from error
    except errors.RepositoryNotFoundError as error:
        hint = "check the spelling; for a private repository log in with `hf auth login`"
        raise LadingError("F504", "neither a folder here nor a repository on the hub", name, hint) from error
    except errors.RevisionNotFoundError as error:
        raise LadingError("F508", f"the repository has no revision {revision!r}", name) from error
    except errors.LocalEntryNotFoundError as error:
        hint = "connect to the network, or give a folder that holds the checkpoint"
        message = "no such folder, and the hub repository is neither in the cache nor within reach"
        raise LadingError("F506", message, name, hint) from error
    except errors.HFValidationError as error:
        raise LadingError("F500", f"not a valid hub name: {error}", name) from error
    except Exception as error:
        # The client lets through whatever its transport and the file system raise, which differs between its releases.
        raise LadingError("F507", f"the download failed: {type(error).__name__}: {error}", name) from error
