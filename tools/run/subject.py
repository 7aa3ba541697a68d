"""What is run: a model directory, told from what it might be mistaken for, and the MNN release that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError

if TYPE_CHECKING:
    from backends.contract import Contract

TEMPLATE_KEYS = ("jinja", "chat_template", "prompt_template", "user_prompt_template")
"""Keys of MNN's configuration files that say how a chat is written."""


@dataclass(frozen=True)
class Runnable:
    """A model directory, and what runs it.

    Attributes:
        folder: the directory.
        config: the configuration file that the release loads.
        release: the MNN release.
        interpreter: the Python that has it.
        settings: what both configuration files say, merged.
        contract: the contract beside it; None without a readable one.
    """

    folder: Path
    config: Path
    release: str
    interpreter: Path | str
    settings: Mapping[str, Any]
    contract: Contract | None

    @property
    def name(self) -> str:
        """The model's name, else the folder's."""
        return self.contract.model.name if self.contract is not None else self.folder.resolve().name

    @property
    def has_template(self) -> bool:
        """The runtime is told how to write a chat."""
        found = self.settings.get("jinja")
        if isinstance(found, dict) and found.get("chat_template"):
            return True
        return any(self.settings.get(key) for key in TEMPLATE_KEYS[1:])

    @property
    def context(self) -> int | None:
        """Positions of the model; None where nothing says."""
        found = self.contract.model.max_position if self.contract is not None else None
        found = found or self.settings.get("max_position_embeddings")
        return found if type(found) is int and found > 0 else None


def find(path: Path, release: str | None) -> Runnable:
    """The model directory of a path, and the release that is asked for or, without one, the installed or newest.

    Raises:
        LadingError: U990 no model directory, U991 no such release on this machine.
    """
    from backends.contract import CONTRACT_FILE, read
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.write.configs import config_for

    folder = _folder(path)
    version, interpreter = _runtime(release)
    config = config_for(folder, version)
    subject = Subject(folder)
    settings = {**subject.llm_config.values, **subject.config.values}
    contract = None
    if (folder / CONTRACT_FILE).is_file():
        try:
            contract = read(folder)
        except LadingError:
            # The doctor tells what is wrong with it; the model runs without.
            contract = None
    return Runnable(folder, config, version, interpreter, settings, contract)


def _folder(path: Path) -> Path:
    """The directory that a path means: itself, or that of an ``.mnn`` file or ``config.json`` in it."""
    from backends.mnn.read.model_folder import Subject
    from backends.mnn.write.configs import CONFIG

    if not path.exists():
        raise LadingError("U990", "there is no such folder", str(path))
    folder = path if path.is_dir() else path.parent
    named = path.is_dir() or path.suffix.lower() == ".mnn" or path.name.startswith("config")
    if named and (folder / CONFIG).is_file() and (any(folder.glob("*.mnn")) or Subject(folder).model_path.is_file()):
        return folder
    raise LadingError("U990", f"this is {_looks_like(path)}", str(path), _advice(path))


def _looks_like(path: Path) -> str:
    if path.is_file():
        return "an ONNX model" if path.suffix.lower() == ".onnx" else "a file, and no model directory"
    if any(path.glob("*.safetensors")):
        return "a checkpoint, which is not compiled yet"
    if any(path.glob("*.onnx")):
        return "an ONNX model, which MNN's engine for language models does not load"
    if any(path.glob("*.mnn")):
        return "an MNN model without config.json, which the engine for language models begins with"
    return "no model directory: it has neither config.json nor an .mnn file"


def _advice(path: Path) -> str:
    from backends.mnn.write.configs import CONFIG

    if path.is_dir() and any(path.glob("*.safetensors")):
        return f"lading compile {path} -o OUT, then lading run OUT"
    inner = sorted(item.parent for item in path.glob(f"*/{CONFIG}") if any(item.parent.glob("*.mnn")))
    if inner:
        return f"model directories in it: {', '.join(item.name for item in inner[:8])}"
    return "lading compile writes one"


def _runtime(release: str | None) -> tuple[str, Path | str]:
    from backends.mnn.target.environments import installed_version, interpreters

    found = interpreters()
    if release is not None:
        if release not in found:
            here = f"; there are {', '.join(found)}" if found else ""
            hint = f"lading releases {release} makes an environment of it"
            raise LadingError("U991", f"MNN {release} is not on this machine{here}", hint=hint)
        return release, found[release]
    if not found:
        raise LadingError("U991", "no MNN that runs language models is on this machine", hint="pip install MNN")
    version = installed_version()
    version = version if version in found else list(found)[-1]
    return version, found[version]
