"""What a frontend is, and those of the source tree: the text form, ONNX files, and checkpoints, read or exported.

A row of the table ``frontends`` is any object with ``suffixes`` and ``load(path)``; a module will do. `Frontend` has
defaults for what else may be asked of one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ir.base.diag import LadingError

if TYPE_CHECKING:
    from ir.graph.graph import Graph

STANDARD = "-"
"""Standard input in place of a file."""


class Frontend:
    """Reads one format.

    Attributes:
        suffixes: endings of the files that it reads, such as ``(".edges",)``.
        options: keyword arguments that `locate` and `load` take: ``revision``, ``lora``, ``free``,
            ``base``.
    """

    suffixes: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()

    def recognises(self, source: str) -> bool:
        """True when a path or name is something that this frontend reads; by default, a file with its suffix."""
        path = Path(os.path.expanduser(source))
        return path.suffix.lower() in self.suffixes and not path.is_dir()

    def locate(self, source: str, **options: Any) -> Path:
        """The file or folder that `load` reads, brought to this machine where it is not there yet."""
        return Path(os.path.expanduser(source))

    def title(self, path: Path) -> str:
        """What to call the model of a file or folder."""
        return path.resolve().name if path.is_dir() else path.stem

    def tokenizer(self, path: Path) -> Path | None:
        """The folder with the tokenizer that belongs to a model; None where none does."""
        from frontends.tokenizers.files import tokenizer_file

        folder = path if path.is_dir() else path.parent
        return folder if tokenizer_file(folder) is not None else None

    def load(self, path: str, **options: Any) -> Graph:
        """The graph of a file or folder; LadingError for what is wrong with it."""
        raise NotImplementedError


class TextForm(Frontend):
    """The text form of the IR."""

    suffixes = (".lading",)

    def recognises(self, source: str) -> bool:
        """Files of that suffix, and ``-`` for standard input."""
        return source == STANDARD or super().recognises(source)

    def load(self, path: str, **options: Any) -> Graph:
        """Read the text form, ``-`` from standard input; relative paths in it are relative to its folder."""
        from ir.text.parser import parse

        if path == STANDARD:
            return parse(sys.stdin.read(), source="standard input")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise LadingError("U910", f"cannot read the graph: {reason}", path) from None
        return parse(text, base=Path(path).parent, source=path)


class OnnxFile(Frontend):
    """An ONNX model with its external data."""

    suffixes = (".onnx",)
    options = frozenset({"free", "base"})

    def title(self, path: Path) -> str:
        """The name of the file, or of its folder where every such file is called alike."""
        from frontends.onnx.beside import title_of

        return title_of(path)

    def tokenizer(self, path: Path) -> Path | None:
        """The folder of the file, or the one above where models have one of their own."""
        from frontends.onnx.beside import tokenizer_folder

        return tokenizer_folder(path)

    def load(
        self,
        path: str,
        *,
        free: Literal["error", "input"] = "input",
        base: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Graph:
        """Read an ONNX model.

        Args:
            path: the file.
            free: what becomes of tensors that are read but never made, see `frontends.onnx.load.load`.
            base: folder of external data; None for that of the file.
            options: none.
        """
        from frontends.onnx.load import load

        return load(path, free=free, base=base)


class CheckpointFolder(Frontend):
    """A Hugging Face checkpoint: a folder, or the name of a repository on the hub; also a GGUF file."""

    suffixes = (".gguf",)
    options = frozenset({"revision", "lora"})

    def recognises(self, source: str) -> bool:
        """Every folder, GGUF files, and names ``owner/name`` that are no path."""
        path = Path(os.path.expanduser(source))
        named = source.count("/") == 1 and not source.startswith((".", "/", "~"))
        return path.is_dir() or (named and not path.exists()) or super().recognises(source)

    def locate(self, source: str, *, revision: str | None = None, **options: Any) -> Path:
        """The folder, downloaded where it has to be; errors F500 to F509."""
        from frontends.checkpoint.hub import resolve

        return resolve(source, revision=revision)

    def tokenizer(self, path: Path) -> Path | None:
        """The checkpoint itself: one without is told so."""
        return path

    def load(
        self, path: str, *, revision: str | None = None, lora: Sequence[tuple[str, float]] = (), **options: Any
    ) -> Graph:
        """Read a checkpoint: a folder or a hub name; `lora` names adapters that are merged into it, and their weights."""
        from frontends.checkpoint.load import load

        return load(path, revision=revision, lora=lora)


class TorchExport(CheckpointFolder):
    """A checkpoint as torch exports the model that ``transformers`` builds of it; only when it is asked for."""

    options = frozenset({"revision"})

    def recognises(self, source: str) -> bool:
        """Nothing: checkpoints are read by `CheckpointFolder`."""
        return False

    def load(self, path: str, *, revision: str | None = None, **options: Any) -> Graph:
        """Export a checkpoint: a folder or a hub name."""
        from frontends.checkpoint.via_torch import load

        return load(path, revision=revision)


FRONTENDS: dict[str, Frontend] = {
    "lading": TextForm(), "onnx": OnnxFile(), "checkpoint": CheckpointFolder(), "torch": TorchExport(),
}  # fmt: skip
"""Frontends of the source tree that need no runtime."""

__all__ = ["FRONTENDS", "STANDARD", "CheckpointFolder", "Frontend", "OnnxFile", "TextForm", "TorchExport"]
