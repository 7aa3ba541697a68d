"""Checkpoints of families that no row describes: ``transformers`` builds the model, torch exports its graph.

Both run in a child process with limits of time and memory, and neither sees a weight: the graph that comes back reads
parameters by name, and these are the checkpoint's own tensors, which stay in their files. What the graph computes is for
the passes to find out, as with an ONNX file that somebody else exported.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from frontends.checkpoint.folder_kinds import refuse_quantized
from frontends.checkpoint.generation import read_generation
from frontends.checkpoint.hub import resolve
from frontends.checkpoint.offline_child import Broken, outcome_of
from frontends.checkpoint.tasks import refuse_other_tasks
from frontends.containers.formats import open_weights
from ir.base.diag import Diagnostic, LadingError
from ir.base.json_numbers import whole
from ir.base.types import F32
from ir.facts.model_card import ModelCard
from ir.graph.graph import Graph
from ir.tensor.base import Tensor
from ir.tensor.elementwise import cast
from ir.tensor.rearranged import transposed

CHILD = Path(__file__).with_name("via_torch_child.py")

NEEDED = ("torch", "transformers", "onnxscript")

BASE_MEMORY = 6 << 30
"""Bytes that the libraries and the graph take."""

SECONDS, SECONDS_A_LAYER = 300.0, 20.0
"""Limit of time: for the start, and for tracing a layer."""

PREFIXES = ("", "model.", "transformer.", "language_model.", "model.language_model.")
"""What may stand before a parameter's name in a checkpoint and not in the model, or the other way round."""

MOST = 8
"""Names that a message lists."""


def load(model: str | os.PathLike[str], *, revision: str | None = None, timeout_s: float | None = None) -> Graph:
    """The graph of a checkpoint folder or hub repository as torch exports it, from token ids to logits of all positions.

    Args:
        model, revision: see `frontends.checkpoint.hub.resolve`.
        timeout_s: limit of time of the export; None takes one by the number of layers.

    Raises:
        LadingError: U997 a package is missing, F567 `transformers` builds no model of the configuration, F568 torch exports
            no graph of it, F569 the checkpoint lacks a parameter; F500 to F529, F535, F563 to F566 and F594 as other checkpoints.
    """
    require_packages()
    folder = resolve(model, revision=revision)
    config = _config(folder)
    generation = read_generation(folder)
    stored = open_weights(folder)
    refuse_other_tasks(folder, stored.tensors.keys())
    refuse_quantized({name: tensor.type.dtype.name for name, tensor in stored.tensors.items()}, folder)
    largest = max((tensor.type.size or 0 for tensor in stored.tensors.values()), default=0)
    layers = config.get("num_hidden_layers")
    limit = SECONDS + SECONDS_A_LAYER * (layers if isinstance(layers, int) else 48)
    graph, parameters = _exported(
        folder, BASE_MEMORY + 8 * largest, limit if timeout_s is None else timeout_s, stored.tensors
    )
    used = {key for key, _ in parameters}
    warnings = [*stored.notes, *generation.warnings, *_unused(stored.tensors.keys() - used, folder)]
    context = config.get("max_position_embeddings")
    card = ModelCard(
        title=folder.resolve().name if os.path.isdir(os.path.expanduser(model)) else os.fspath(model),
        model_type=str(config.get("model_type", "")) or None,
        family=str(config.get("model_type", "")) or None,
        context=context if isinstance(context, int) and context > 0 else None,
        max_position=context if isinstance(context, int) and context > 0 else None,
        parameters=sum(prod(shape) for _, shape in parameters),
        dtypes=tuple(sorted({stored.tensors[key].type.dtype.name for key in used})),
        sources=dict(stored.files),
        config_digest=_digest(folder / "config.json"),
        folder=str(folder),
        sampling=generation.given,
        warnings=tuple(warnings),
    )
    graph.set_fact(card.name, card)
    return graph


def require_packages() -> None:
    """Raise LadingError U997 where a package that this way needs is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        names = " and ".join(map(repr, missing))
        message = f"--via torch needs {names}, which {'are' if len(missing) > 1 else 'is'} not installed"
        raise LadingError("U997", message, hint="pip install 'lading[torch]'")


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=whole)
    except (OSError, ValueError, RecursionError) as error:
        raise LadingError("F530", f"cannot be read as JSON: {error}", str(path)) from error
    if not isinstance(data, dict):
        raise LadingError("F530", "is not a JSON object", str(path))
    inner = data.get("text_config")
    return {**(inner if isinstance(inner, dict) else {}), **data}


def _digest(path: Path) -> str:
    from ir.base.whole_files import sha256_of

    return sha256_of(path)


# ---- the child ----


def _exported(
    folder: Path, memory: int, timeout_s: float, tensors: Mapping[str, Tensor]
) -> tuple[Graph, list[tuple[str, tuple[int, ...]]]]:
    """The graph, and the keys and shapes of the tensors that it reads."""
    import tempfile

    import onnx

    from frontends.onnx.load import lift_message
    from frontends.onnx.tensors import Place

    with tempfile.TemporaryDirectory(prefix="lading-") as name:
        place = Path(name)
        request = {"model": str(folder.resolve()), "memory": memory}
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        outcome = _run(place, folder, timeout_s)
        bound = bind(outcome["parameters"], tensors, folder)
        constants = {known: cast(tensors[key], F32) for known, key, _ in bound}
        proto = onnx.load(str(place / "graph.onnx"))
        graph = lift_message(proto, Place(None), constants=constants)
    _turned(graph, {item["name"]: item["names"] for item in outcome["parameters"]})
    return graph, [(key, shape) for _, key, shape in bound]


def _turned(graph: Graph, names: Mapping[str, Sequence[str]]) -> None:
    """Keep transposed parameters under their own names, which people choose weights by."""
    for node in list(graph.nodes):
        source = node.input(0)
        if node.op != "Transpose" or source is None or source.name not in names or source.rank != 2:
            continue
        if list(node.attrs.get("perm", (1, 0))) != [1, 0]:
            continue
        tensor = transposed(source.tensor)
        name = next((one for one in names[source.name] if one != source.name), f"{source.name}.transposed")
        if source.use_count == 1:
            name = source.name
            graph.rename(source, graph.fresh_name(f"{name}.stored"))
        graph.replace(node.output, graph.add_const(graph.fresh_name(name), tensor, source.loc))
        graph.erase(node)
        if not source.use_count:
            graph.erase_const(source)


def _run(place: Path, folder: Path, timeout_s: float) -> dict[str, Any]:
    """The child's outcome."""
    try:
        outcome = outcome_of(CHILD, place, timeout_s)
    except TimeoutError:
        raise LadingError("F568", f"torch did not export the model within {timeout_s:.0f} s", str(folder)) from None
    except OSError as error:
        raise LadingError("U981", f"a helper process cannot be started: {error.strerror or error}") from error
    except Broken as error:
        raise LadingError("F568", f"the process that exports the model {error}", str(folder)) from None
    if outcome.get("step") == "build":
        hint = "code that comes with a checkpoint is never run; a newer transformers may know the family"
        raise LadingError("F567", f"transformers builds no model: {outcome['reason']}", str(folder), hint)
    if "parameters" not in outcome:
        raise LadingError("F568", f"torch cannot export the model: {outcome.get('reason')}", str(folder))
    return outcome


def bind(
    parameters: Iterable[Mapping[str, Any]], tensors: Mapping[str, Tensor], folder: Path
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name of each parameter in the graph, key of its tensor, and shape.

    Args:
        parameters: name, further names and shape of each.
        tensors: the tensors of the checkpoint.
        folder: where they are, for errors.

    Raises:
        LadingError: F569 for each that the checkpoint does not have.
    """
    found = [_stored(item, tensors, folder) for item in parameters]
    if problems := [item for item in found if isinstance(item, Diagnostic)]:
        raise LadingError.of(problems[:MOST])
    return [item for item in found if not isinstance(item, Diagnostic)]


def _stored(
    item: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
) -> tuple[str, str, tuple[int, ...]] | Diagnostic:
    """Name of a parameter in the graph, key of its tensor, and shape; what is wrong where there is none."""
    shape = tuple(item["shape"])
    keys = [key for name in item["names"] for key in _spellings(name) if key in tensors]
    fitting = [key for key in dict.fromkeys(keys) if tensors[key].type.shape == shape]
    where = str(folder)
    if not fitting:
        message = f"the model has a parameter {item['name']} {list(shape)}, and the checkpoint no such tensor"
        if keys:
            message = (
                f"the model's parameter {item['name']} is {list(shape)}, and the tensor {list(tensors[keys[0]].shape)}"
            )
        return Diagnostic("F569", message, where, "the checkpoint may be of another release of transformers")
    if len(fitting) > 1 and not all(tensors[key].digest() == tensors[fitting[0]].digest() for key in fitting[1:]):
        message = f"{' and '.join(fitting)} are one parameter of the model, and two different tensors of the checkpoint"
        return Diagnostic("F569", message, where)
    return item["name"], fitting[0], shape


def _spellings(name: str) -> Iterable[str]:
    """Names under which a parameter may be stored, the likeliest first."""
    yield name
    for prefix in PREFIXES[1:]:
        yield prefix + name
        if name.startswith(prefix):
            yield name.removeprefix(prefix)


def _unused(keys: Iterable[str], folder: Path) -> list[Diagnostic]:
    """A warning of tensors that the model does not read."""
    names = sorted(keys)
    if not names:
        return []
    shown = ", ".join(names[:MOST]) + (f" and {len(names) - MOST} more" if len(names) > MOST else "")
    what = "1 tensor of the checkpoint is" if len(names) == 1 else f"{len(names)} tensors of the checkpoint are"
    message = f"{what} not used by the model that transformers builds: {shown}"
    return [Diagnostic("F576", message, str(folder), severity="warning")]


__all__ = ["NEEDED", "bind", "load", "require_packages"]
