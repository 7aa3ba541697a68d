"""A checkpoint from its configuration and headers alone, with one layer of each kind in place of all of them.

Layers whose parts, windows, ropes and stored tensors are alike cost the same, so a model of sixty layers is known from two
or three. Three places are read: a folder with weights, of which the headers count; a folder with a configuration and no
weights, whose tensors then have the shapes that its family calls for; and a repository on the hub, of which nothing but the
headers is fetched: they are written to a folder before holes of the size of the data, so that every format of weights reads
them as it reads a checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from frontends.checkpoint.config_file import read_config
from frontends.checkpoint.hub import HUB_NAME, resolve
from frontends.checkpoint.load import assemble
from frontends.checkpoint.tasks import refuse_other_tasks
from frontends.containers.formats import Safetensors, format_of, open_weights
from frontends.families.model_config import ModelConfig
from frontends.families.scheme import Family
from frontends.families.table import FAMILIES
from ir.base.diag import LadingError
from ir.base.types import BF16, DTYPES, TensorType
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph
from ir.tensor.base import Tensor
from ir.tensor.inline import InlineTensor
from ir.tensor.supposed import Supposed

SMALL = 1 << 15
"""Elements up to which tensors of a configuration alone are given numbers."""

HEADER_START = 1 << 20
"""Bytes of a file that are fetched first; its header may be longer."""

WEIGHTS_OF_ANY_KIND = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
"""A folder without any file that ends so is a configuration alone."""

T = TypeVar("T")

STORED = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "float64": "f64"}
"""Element types by their names in configurations."""


@dataclass(frozen=True)
class Outline:
    """A model of which one layer of each kind is there.

    Attributes:
        graph: its graph, with a card that tells of the whole model.
        counts: for each layer of the graph, how many of the model it stands for.
        layers: what stands before the number of a layer in names.
        stored_bytes: bytes of its files of weights; None where only the configuration is known.
    """

    graph: Graph
    counts: tuple[int, ...]
    layers: str
    stored_bytes: int | None

    @property
    def whole(self) -> bool:
        """True when every layer of the model is there."""
        return all(count == 1 for count in self.counts)

    def times(self, name: str) -> int:
        """How often what has a name is there in the whole model."""
        found = re.match(rf"{re.escape(self.layers)}\.(\d+)(\.|$)", name)
        return self.counts[int(found[1])] if found else 1


@contextmanager
def headers_of(model: str, revision: str | None, executor: Executor) -> Iterator[Path]:
    """A folder with the configuration and the headers of a checkpoint: itself, or what was fetched of a repository.

    Args:
        model: a folder, a GGUF file, or a hub name.
        revision: of a repository.
        executor: fetches several headers at once.

    Raises:
        LadingError: F500 to F509 and F563 to F566 for the place.
    """
    path = Path(os.path.expanduser(model))
    if revision is None and (path / "config.json").is_file() and not _has_weights(path):
        yield path.absolute()
        return
    if path.exists() or not HUB_NAME.fullmatch(model):
        yield resolve(model, revision=revision)
        return
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="lading-") as name:
        _fetch_headers(model, revision, Path(name), executor)
        yield Path(name)


def outline(folder: Path, *, whole: bool = False, families: Mapping[str, Family] = FAMILIES) -> Outline:
    """Read the outline of a checkpoint folder.

    Args:
        folder: configuration, and headers unless there are no weights.
        whole: keep every layer.
        families: rows to choose from.

    Raises:
        LadingError: as for `frontends.checkpoint.load.load`, but for what is found in numbers alone.
    """
    where = str(folder)
    weights = open_weights(folder) if _has_weights(folder) else None
    refuse_other_tasks(folder, weights.tensors.keys() if weights is not None else ())
    config = read_config(folder / "config.json", families)
    stored_there = weights.tensors if weights is not None else {}
    prefix = f"{_prefix(config, weights.tensors if weights is not None else None)}{config.family.layers}"
    groups = [[index] for index in range(len(config.layers))] if whole else _alike(config, stored_there, prefix)
    few = replace(config, layers=tuple(config.layers[group[0]] for group in groups))
    alone = weights is None
    tensors = _supposed(few, _stored_type(folder), where) if alone else _renumbered(stored_there, prefix, groups)
    spare = dict.fromkeys(weights.spare) if weights is not None else {}
    graph, stored = assemble(few, tensors, where, tuple(_renumbered(spare, prefix, groups)))
    card = ModelCard.of(graph)
    counts = tuple(map(len, groups))
    found = Outline(graph, counts, prefix, sum(item.bytes for item in weights.files.values()) if weights else None)
    card = replace(
        card,
        title=folder.name,
        layers=len(config.layers),
        windows=tuple(layer.window for layer in config.layers),
        parameters=sum(math.prod(shape) * found.times(name) for name, shape in stored.used.items()),
        sources=dict(weights.files) if weights is not None else {},
        config_digest=config.digest,
        folder=where,
    )
    graph.set_fact(card.name, card)
    return found


def _has_weights(folder: Path) -> bool:
    there = any(path.suffix in WEIGHTS_OF_ANY_KIND for path in folder.iterdir())
    return there or not isinstance(format_of(folder), Safetensors)


# ---- layers ----


def _alike(config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str) -> list[list[int]]:
    """The layers by kind, the first one apart: equal parts, and equal tensors but for the layer's number."""
    held: dict[int, list[tuple[str, str]]] = {}
    for name, tensor in tensors.items():
        found = re.match(rf"{re.escape(prefix)}\.(\d{{1,9}})\.", name)
        if found:
            held.setdefault(int(found[1]), []).append((name[found.end() :], str(tensor.type)))
    kinds: list[tuple[Any, Any, list[int]]] = []
    for index, layer in enumerate(config.layers):
        own = sorted(held.get(index, ()))
        for other, others, members in kinds:
            if other == layer and others == own:
                members.append(index)
                break
        else:
            kinds.append((layer, own, [index]))
    groups = [members for _, _, members in kinds]
    # What is alive at once is seen from the second layer on: the first one begins with what the caller holds.
    return [groups[0][:1], groups[0][1:], *groups[1:]] if len(groups[0]) > 1 else groups


def _renumbered(tensors: Mapping[str, T], prefix: str, groups: Sequence[Sequence[int]]) -> dict[str, T]:
    """What belongs to the tensors of the first layer of each group under the group's number, and those of no layer."""
    place = {group[0]: number for number, group in enumerate(groups)}
    found = {}
    for name, tensor in tensors.items():
        inside = re.match(rf"{re.escape(prefix)}\.(\d{{1,9}})\.", name)
        if inside is None:
            found[name] = tensor
        elif int(inside[1]) in place:
            found[f"{prefix}.{place[int(inside[1])]}.{name[inside.end() :]}"] = tensor
    return found


def _prefix(config: ModelConfig, tensors: Mapping[str, Tensor] | None) -> str:
    from frontends.families.places import find_places

    return find_places(config, tensors, config.path).prefix


# ---- a configuration alone ----


def _stored_type(folder: Path) -> str:
    """The element type that a configuration names, bf16 where it names none."""
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    inner = raw.get("text_config")
    for record in (raw, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            if record.get(key) in STORED:
                return STORED[record[key]]
    return BF16.name


def _supposed(config: ModelConfig, dtype: str, where: str) -> dict[str, Tensor]:
    """The tensors that a family calls for, without numbers; small ones, which passes compare, have some."""
    _, stored = assemble(config, None, where)
    found: dict[str, Tensor] = {}
    for name, shape in stored.used.items():
        if math.prod(shape) <= SMALL:
            numbers = np.random.default_rng(zlib.crc32(name.encode())).uniform(0.5, 1.5, shape)
            found[name] = InlineTensor(numbers.astype(DTYPES[dtype].numpy), loc=name)
        else:
            found[name] = Supposed(TensorType(DTYPES[dtype], shape), name)
    return found


# ---- a repository ----


def _fetch_headers(name: str, revision: str | None, folder: Path, executor: Executor) -> None:
    """Fetch configuration files, and of each file of weights its header, behind which a hole has the size of the data.

    Raises:
        LadingError: F502 no safetensors, F504 to F508 as for downloads.
    """
    from huggingface_hub import HfApi, hf_hub_url

    from frontends.checkpoint.hub import download, telling

    small = (
        "config.json",
        "generation_config.json",
        "*.index.json",
        "modules.json",
        "*/config.json",
        "adapter_config.json",
    )
    with telling(name, revision):
        found = HfApi().model_info(name, revision=revision, files_metadata=True)
        got = download(name, revision, None, False, small)
        sizes = {item.rfilename: item.size for item in found.siblings or () if item.rfilename.endswith(".safetensors")}
        sizes = {file: size for file, size in sizes.items() if "/" not in file and not file.startswith("consolidated")}
        if not sizes:
            raise LadingError("F502", "the repository has no .safetensors files", name, "look for a converted copy")
        for path in got.rglob("*.json"):
            place = folder / path.relative_to(got)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
        jobs = [
            executor.submit(_fetch_header, hf_hub_url(name, file, revision=found.sha), folder / file, size or 0)
            for file, size in sizes.items()
        ]
        for job in jobs:
            job.result()


def _fetch_header(url: str, path: Path, size: int) -> None:
    """Write a file that begins with the header of a remote one and goes on with nothing, to the same size."""
    start = _range(url, min(size, HEADER_START))
    length = 8 + int.from_bytes(start[:8], "little")
    if HEADER_START < length <= min(size, 100_000_000):
        start = _range(url, length)
    with path.open("wb") as file:
        file.write(start[:length])
        file.truncate(size)


def _range(url: str, count: int) -> bytes:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    answer = get_session().get(url, headers={**build_hf_headers(), "Range": f"bytes=0-{count - 1}"})
    hf_raise_for_status(answer)
    return bytes(answer.content[:count])


__all__ = ["Outline", "headers_of", "outline"]
