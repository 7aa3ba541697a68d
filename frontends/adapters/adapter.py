"""An adapter folder or repository: its configuration, and its tensors by the module that they change.

Names are those that peft writes: ``base_model.model.`` and the module's path in the model of transformers, then
``lora_A.weight`` and ``lora_B.weight`` for the factors of a linear module, ``lora_embedding_A`` and ``lora_embedding_B``
for those of an embedding, ``lora_magnitude_vector`` for lengths of rows, ``lora_B.bias`` for an addition to the bias,
``token_adapter.trainable_tokens_delta`` for rows, a module's own ``weight`` and ``bias`` where it was trained whole, and
``base_layer.weight`` for the matrix that factors add to, which is saved
beside those of an embedding. Pickled adapters are never opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from frontends.adapters.config import CONFIG, AdapterConfig, read_adapter_config
from frontends.containers.safetensors import read_file
from frontends.containers.stand_ins import require_present
from ir.base.diag import LadingError
from ir.base.whole_files import sha256_of
from ir.tensor.base import Tensor

WEIGHTS = "adapter_model.safetensors"

FILES = (CONFIG, WEIGHTS)

PREFIX = "base_model.model."

PARTS: tuple[tuple[str, str], ...] = (
    (r"lora_A(?:\.default)?\.weight", "a"),
    (r"lora_B(?:\.default)?\.weight", "b"),
    (r"lora_B(?:\.default)?\.bias", "bias_added"),
    (r"lora_embedding_A(?:\.default)?", "embedding_a"),
    (r"lora_embedding_B(?:\.default)?", "embedding_b"),
    (r"lora_magnitude_vector(?:\.default)?(?:\.weight)?", "lengths"),
    (r"token_adapter\.trainable_tokens_delta", "token_rows"),
    (r"base_layer\.weight", "base"),
    (r"(?:modules_to_save\.(?:default\.)?)?weight", "weight"),
    (r"(?:base_layer\.|modules_to_save\.(?:default\.)?)?bias", "bias"),
)
"""What follows a module's path, and the part of a change that it is."""

_NAME = re.compile("(?P<module>.+?)\\.(?:" + "|".join(f"(?P<{part}>{text})" for text, part in PARTS) + ")")


@dataclass(frozen=True)
class Change:
    """What an adapter does to one module: its tensors by the parts of `PARTS`."""

    module: str
    parts: Mapping[str, Tensor]

    @property
    def factors(self) -> tuple[str, str] | None:
        """The parts that are its two factors; None where it has none."""
        return next((pair for pair in (("a", "b"), ("embedding_a", "embedding_b")) if pair[0] in self.parts), None)


@dataclass(frozen=True)
class Adapter:
    """An adapter, its tensors not read yet.

    Attributes:
        name: folder or hub name, as it was given.
        folder: where its files are.
        weight: what its changes are multiplied by.
        config: its configuration.
        changes: what it does, by module.
        digests: SHA-256 (hex) of each of its files.
    """

    name: str
    folder: Path
    weight: float
    config: AdapterConfig
    changes: Mapping[str, Change]
    digests: Mapping[str, str] = field(default_factory=dict)


def open_adapter(source: str, weight: float = 1.0) -> Adapter:
    """Read what an adapter folder or hub repository says; its tensors stay where they are.

    Raises:
        LadingError: F504 to F508 for the hub, F510 to F523, F563 and F564 for the files, F590 and F591 for the
            configuration, F592 for tensors that do not belong together.
    """
    folder = _locate(source)
    require_present(folder, os.listdir(folder))
    config = read_adapter_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = sorted(name for name in os.listdir(folder) if name.endswith((".bin", ".pt", ".pth")))
        message = f"the adapter has no {WEIGHTS}" + (f", only {pickled[0]}" if pickled else "")
        hint = "pickled adapters are never opened: load it with peft and save it again, which writes safetensors"
        raise LadingError("F590", message, str(folder), hint if pickled else "fetch the adapter again")
    changes = _changes(read_file(path).tensors, config, str(path))
    return Adapter(source, folder, weight, config, changes, {name: sha256_of(folder / name) for name in FILES})


def _locate(source: str) -> Path:
    from frontends.checkpoint.hub import HUB_NAME, download

    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        return folder.absolute()
    if os.path.lexists(folder):
        raise LadingError("F590", "an adapter is a folder; this is a file", source, f"give the folder with {CONFIG}")
    if not HUB_NAME.fullmatch(source):
        raise LadingError("F590", "no such adapter folder", source, "an adapter on the hub is written owner/name")
    return download(source, None, None, False, FILES)


def _changes(tensors: Mapping[str, Tensor], config: AdapterConfig, where: str) -> dict[str, Change]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        split = _NAME.fullmatch(name.removeprefix(PREFIX))
        if split is None:
            message = f"tensor {name} is no part of a low-rank adapter that is known"
            raise LadingError(
                "F592", message, where, "with peft, merge the adapter into its base and compile the result"
            )
        part = next(key for key, text in split.groupdict().items() if text is not None and key != "module")
        module = found.setdefault(split["module"], {})
        if part in module:
            raise LadingError(
                "F592", f"module {split['module']} has several tensors of one kind, such as {name}", where
            )
        module[part] = tensor
    changes = {module: Change(module, parts) for module, parts in found.items()}
    if not changes:
        raise LadingError("F592", "the adapter holds no tensor at all", where, "fetch the adapter again")
    for change in changes.values():
        _check(change, config, where)
    return changes


def _check(change: Change, config: AdapterConfig, where: str) -> None:
    """Check that the parts of one change belong together and fit the configuration; F591 or F592 otherwise."""

    def refuse(why: str, hint: str = "") -> LadingError:
        return LadingError("F592", f"module {change.module}: {why}", where, hint)

    parts = change.parts
    for one, other in (("a", "b"), ("embedding_a", "embedding_b")):
        if (one in parts) != (other in parts):
            raise refuse("one of its two factors is missing", "the file is not complete; save the adapter again")
    if "a" in parts and "embedding_a" in parts:
        raise refuse("it has the factors of a linear module and of an embedding")
    if change.factors is None:
        lone = {"lengths", "bias_added"} & parts.keys()
        if lone:
            raise refuse("it has parts of a low-rank change, but no factors")
        return
    a, b = (parts[part] for part in change.factors)
    rank = config.rank_of(change.module)
    if a.type.rank != 2 or b.type.rank != 2 or a.shape[0] != rank or b.shape[1] != rank:
        shapes = f"{list(a.shape)} and {list(b.shape)}"
        raise refuse(f"factors of shapes {shapes} are not of rank {rank}, which {CONFIG} gives them")
    if config.directions != ("lengths" in parts):
        had = (
            "no lengths of rows, although use_dora is true" if config.directions else "lengths of rows without use_dora"
        )
        raise refuse(f"it has {had}")
    if config.directions and "embedding_a" in parts:
        message = f"module {change.module}: lengths of an embedding's columns (use_dora) are not merged"
        raise LadingError("F591", message, where, "with peft, merge the adapter into its base and compile the result")


__all__ = ["FILES", "PREFIX", "Adapter", "Change", "open_adapter"]
