"""A model that somebody made: its files, configuration and graph, opened for looking, without native code.

What cannot be read is a problem to report and not an error, so every part may be absent. Nothing outside of the folder
is opened, whatever a configuration or a link says: `Subject.has` is asked before any file is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from backends.contract import CONTRACT_FILE
from backends.mnn.read.net_file import numbers, read_net
from backends.mnn.target.releases import Release
from backends.mnn.write.configs import CONFIG, CONFIG_TEXT, EMBEDDING, LLM_CONFIG, MODEL, WEIGHTS
from ir.base.diag import LadingError
from ir.base.inside import outside
from ir.base.json_numbers import whole

TOKENIZER = "tokenizer.txt"
"""What the runtime opens when the configuration does not say."""
_POINTER = b"version https://git-lfs.github.com/spec/"
SHORT_NAME = 60
"""Characters that every file system takes."""


@dataclass
class Settings:
    """One JSON file: its values, keys that it has twice, and why it cannot be read."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    problem: str = ""
    missing: bool = False


class Subject:
    """A model directory, or one ``.mnn`` file."""

    def __init__(self, path: Path) -> None:
        """Open a directory or file.

        Raises:
            LadingError: B711 there is nothing of this name.
        """
        if not path.exists():
            raise LadingError("B711", "there is no such file or folder", where=str(path))
        self.path = path
        self.is_folder = path.is_dir()
        self.folder = path if self.is_folder else path.parent
        self.net_problem: LadingError | None = None

    # ---- configuration ----

    @cached_property
    def config(self) -> Settings:
        """``config.json``."""
        return self._settings(CONFIG)

    @cached_property
    def llm_config(self) -> Settings:
        """The file that ``config.json`` names for the model's own settings."""
        return self._settings(self.file_key("llm_config", LLM_CONFIG))

    @cached_property
    def text_config(self) -> Settings | None:
        """The second configuration that this compiler writes for releases without the exact tokenizer form."""
        return self._settings(CONFIG_TEXT) if self.has(self.folder / CONFIG_TEXT) else None

    def _settings(self, name: str) -> Settings:
        found, path = Settings(name), self.file(name)
        if not self.is_folder or not self.has(path):
            found.missing = True
            return found

        def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
            made = dict(items)
            if len(made) < len(items):
                keys = [key for key, _ in items]
                found.repeated += sorted({key for key in keys if keys.count(key) > 1})
            return made

        try:
            data = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=pairs, parse_int=whole)
            # An escaped half of a character is read without complaint, but nobody could write it again.
            json.dumps(data, ensure_ascii=False).encode()
        except (ValueError, RecursionError, OSError) as error:
            found.problem = str(error)
            return found
        if isinstance(data, dict):
            found.values = data
        else:
            found.problem = "it is not an object"
        return found

    def file_key(self, key: str, default: str) -> str:
        """A file name from ``config.json``, or from the other file where only that has it."""
        value = self.config.values.get(key)
        if value is None and key != "llm_config":
            value = self.llm_config.values.get(key)
        return value if isinstance(value, str) and value else default

    def file(self, name: str) -> Path:
        """The path of a file that a configuration names, joined as the runtime does, so an absolute name is one below
        the folder; a name that no file can have is cut, so that one may ask for it."""
        path = self.folder / name.lstrip("/")
        try:
            path.is_file()
        except OSError:
            return self.folder / name[:SHORT_NAME]
        return path

    def has(self, path: Path) -> bool:
        """There is a regular file at a path of the model, and it lies in the model's folder."""
        return path.is_file() and (path == self.path or outside(path, self.folder) is None)

    def read_files(self, release: Release) -> dict[str, Path]:
        """Files that a release opens, by what names them, whether they exist or not."""
        if not self.is_folder:
            return {"the model": self.model_path, "its weights": self.weight_path}
        own = self.config_of(release)
        found = {
            own.name: self.file(own.name),
            "llm_config": self.file(self.llm_config.name),
            "llm_model": self.model_path,
            "llm_weight": self.weight_path,
            "tokenizer_file": self.tokenizer_path(release),
        }
        tie = self.llm_config.values.get("tie_embeddings")
        first = tie.get("weight_offset") if isinstance(tie, dict) else tie[0] if isinstance(tie, list) and tie else None
        # Rows that are tied to the logits matrix come from the weight file.
        return found if first else {**found, "embedding_file": self.embedding_path}

    def misplaced(self, what: str, path: Path, release: Release) -> str:
        """Why a file of `read_files` is not one of the folder; empty when it is."""
        if path != self.path and (real := outside(path, self.folder)) is not None:
            return f"{path.name} ({what}) leads out of the model's folder, to {real}, and was not read"
        name = self.setting(release, what)
        if isinstance(name, str) and name.startswith("/"):
            return f"{what} is an absolute path, which the runtime looks for below the folder: {name}"
        return ""

    def config_of(self, release: Release) -> Settings:
        """The configuration file that a release should load."""
        return self.text_config if not release.mtok and self.text_config is not None else self.config

    def setting(self, release: Release, key: str, default: Any = None) -> Any:
        """What a release reads for a key that may stand in either file."""
        first, second = self.config_of(release).values, self.llm_config.values
        if release.first_config != CONFIG:
            first, second = second, first
        return first.get(key, second.get(key, default))

    # ---- files ----

    @cached_property
    def model_path(self) -> Path:
        """The ``.mnn`` file."""
        return self.file(self.file_key("llm_model", MODEL)) if self.is_folder else self.path

    @cached_property
    def weight_path(self) -> Path:
        """The external weight file, whether it exists or not."""
        if self.is_folder:
            return self.file(self.file_key("llm_weight", WEIGHTS))
        return self.path.with_name(self.path.name + ".weight")

    @property
    def embedding_path(self) -> Path:
        """The embedding file, whether it exists or not."""
        return self.file(self.file_key("embedding_file", EMBEDDING))

    def tokenizer_path(self, release: Release) -> Path:
        """The tokenizer file that a release opens."""
        name = self.setting(release, "tokenizer_file", TOKENIZER)
        return self.file(name if isinstance(name, str) else TOKENIZER)

    # ---- graph ----

    @cached_property
    def net(self) -> dict[str, Any]:
        """The graph; empty with `net_problem` set when it cannot be read."""
        try:
            if not self.has(self.model_path):
                raise LadingError("B711", "there is no such file in the model's folder", where=str(self.model_path))
            return read_net(self.model_path)
        except LadingError as error:
            self.net_problem = error
            return {"oplists": [], "tensorName": []}

    @cached_property
    def names(self) -> list[str]:
        """Tensor names by index."""
        return self.net["tensorName"]

    def name(self, index: int) -> str:
        """Name of a tensor; a placeholder when the index is outside."""
        return self.names[index] if 0 <= index < len(self.names) else f"tensor {index}"

    @cached_property
    def ops(self) -> list[dict[str, Any]]:
        """All operators, those of subgraphs behind the main ones."""
        inner = [op for graph in self.net.get("subgraphs", ()) for op in graph.get("nodes", ())]
        return [*self.net["oplists"], *inner]

    @cached_property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """Declared inputs by tensor name, with ``dims`` and ``dtype``."""
        return {
            self.name(index): op.get("main", {})
            for op in self.net["oplists"]
            if op.get("type") == "Input"
            for index in numbers(op.get("outputIndexes"))
        }

    @cached_property
    def producers(self) -> dict[int, dict[str, Any]]:
        """Operator that makes each tensor of the main graph."""
        return {index: op for op in self.net["oplists"] for index in numbers(op.get("outputIndexes"))}

    @cached_property
    def made(self) -> set[str]:
        """Names of tensors that an operator of the main graph makes, inputs included."""
        return {self.name(index) for index in self.producers}

    @cached_property
    def _above_logits(self) -> set[int]:
        """Tensors that the logits depend on, or all that are read where there are no logits."""
        if "logits" not in self.names:
            return {index for op in self.net["oplists"] for index in numbers(op.get("inputIndexes"))}
        waiting, seen = [self.names.index("logits")], set()
        while waiting:
            index = waiting.pop()
            if index not in seen:
                seen.add(index)
                waiting += numbers(self.producers.get(index, {}).get("inputIndexes"))
        return seen

    @cached_property
    def read_inputs(self) -> set[str]:
        """Inputs that the logits depend on; a declared input that nothing reads is never asked for."""
        if "logits" not in self.names:
            return set(self.inputs)
        return {self.name(index) for index in self._above_logits} & set(self.inputs)

    @cached_property
    def undeclared(self) -> set[str]:
        """Names of tensors that the logits depend on, which no operator makes and no input declares: the runtime must
        feed them all the same."""
        places = {index for index in self._above_logits if 0 <= index < len(self.names)}
        return {self.names[index] for index in places - self.producers.keys()}

    @property
    def is_language_model(self) -> bool:
        """It is a model directory, or has tensors that the language-model engine feeds and reads."""
        return self.is_folder or (not self.is_module and bool({"logits", "input_ids"} & set(self.names)))

    @cached_property
    def is_module(self) -> bool:
        """The contract beside the file is that of a model which applications load by themselves, without an engine."""
        path = self.folder / CONTRACT_FILE
        if self.is_folder or not self.has(path):
            return False
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_int=whole)
            roles = {item["role"]: item["path"] for item in data["files"]}
        except (ValueError, RecursionError, OSError, LookupError, TypeError):
            return False
        return roles.get("model") == self.path.name and "config" not in roles

    @cached_property
    def convolutions(self) -> list[dict[str, Any]]:
        """Linear layers that take their weights from a file or hold them."""
        return [op for op in self.ops if op.get("type") == "Convolution" and "main" in op]

    @cached_property
    def logits_layer(self) -> dict[str, Any] | None:
        """The convolution that computes the logits, or None."""
        if "logits" not in self.names:
            return None
        index = self.names.index("logits")
        for _ in range(16):
            op = self.producers.get(index)
            if op is None or op.get("type") == "Convolution":
                return op
            operands = numbers(op.get("inputIndexes"))
            if not operands:
                return None
            index = operands[0]
        return None

    def external_ends(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each operator with data in the weight file, and the first byte behind its data."""
        for op in self.ops:
            external = numbers(op.get("main", {}).get("external"))
            if len(external) > 1:
                yield op, sum(external)


def is_lfs_pointer(path: Path) -> bool:
    """A file is the text that Git LFS leaves in the place of one that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def alpha_form(op: dict[str, Any]) -> tuple[int, int, bool] | None:
    """Bits, block and whether there are zeros, of a convolution with integer codes in the weight file; else None."""
    main = op["main"]
    quant, external, common = main.get("quanParameter"), numbers(main.get("external")), main.get("common", {})
    if not quant or quant.get("type") != 1 or len(external) < 3:
        return None
    rows, columns = common.get("outputCount", 0), common.get("inputCount", 0)
    pairs = bool(quant.get("readType"))
    size = 2 if quant.get("scaleStorage") == "FP16" else 4
    blocks = external[2] // size // (2 if pairs else 1) // max(rows, 1)
    if not blocks or not columns:
        return None
    return _bits(external[1], rows * columns), columns // blocks, pairs


def _bits(nbytes: int, count: int) -> int:
    """Width of codes from the size of their blob: header, table of 2^bits and codes."""
    for bits in range(2, 9):
        if nbytes - (1 << bits) - math.ceil(count * bits / 8) in (6, 10):
            return bits
    return 0
