"""Write a complete MNN model directory from a legal graph: layout first, then everything else in parallel."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.mnn.card import last_size
from backends.mnn.lower.fit import check_storage, fit
from backends.mnn.run.native import json_to_mnn
from backends.mnn.sampling.translate import Sampler, translate
from backends.mnn.target.releases import MnnTarget, Release
from backends.mnn.tokenizer.write_files import TokenizerFiles, TokenizerRequest
from backends.mnn.write import configs
from backends.mnn.write.mapped import check_mapped, mapped_keys
from backends.mnn.write.net_json import build_net
from backends.mnn.write.weight_file import embedding_jobs, fill, weight_jobs
from backends.mnn.write.weight_layout import Layout, plan_layout
from ir.graph.graph import Graph

if TYPE_CHECKING:
    from backends.contract.records import Memory


@dataclass(frozen=True)
class Settings:
    """Runtime settings written into ``config.json``.

    Attributes:
        precision: ``low`` lets processors with half-float arithmetic use it, ``high`` forbids it.
        memory: ``low`` quantizes activations to 8 bits at run time and keeps codes packed; ``normal`` and ``high``
            expand weights to floats when loading.
        threads: CPU threads.
        dynamic_option: how low memory quantizes activations: 0 by row, 2 by block of the weight.
        mapped: later loads map weights as the first rearranged them, see `backends.mnn.write.mapped`.
        others: further keys of the configuration, see `backends.mnn.target.run_settings`.
    """

    precision: str = "low"
    memory: Memory = "low"
    threads: int = 4
    dynamic_option: int = 0
    mapped: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    def as_run(self) -> dict[str, Any]:
        """The settings under the names that the runtime reads; ``dynamic_option`` only where it is not the default."""
        run: dict[str, Any] = {"memory": self.memory, "precision": self.precision, "thread_num": self.threads}
        return {**run, **({"dynamic_option": self.dynamic_option} if self.dynamic_option else {}), **self.others}


@dataclass
class Emission:
    """What was written.

    Attributes:
        folder: the directory.
        layout: where every weight lies.
        roles: role of each file, by name relative to the folder.
        settings: runtime settings written into the configuration.
        tokenizer: what was written of the tokenizer.
        seconds: time by step.
        samplers: configuration files, the releases that read each, and the sampler in it.
        declared: inputs that the original declared itself.
        declared_by: who found the others.
        copied_table: embedding rows were copied as they were.
        backend_type: backend written into the configuration.
        mapped: keys of the configuration by which later loads map the weights.
        digests: SHA-256 (hex) of files that were digested while they were written, by name.
    """

    folder: Path
    layout: Layout
    roles: dict[str, str]
    settings: Settings
    tokenizer: TokenizerFiles | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    samplers: dict[str, tuple[tuple[Release, ...], Sampler]] = field(default_factory=dict)
    declared: tuple[str, ...] = ()
    declared_by: str = "discover-inputs"
    copied_table: bool = False
    backend_type: str = "cpu"
    mapped: Mapping[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def emit(
    graph: Graph,
    folder: Path,
    *,
    tokenizer: Callable[[], TokenizerFiles],
    sampling: Mapping[str, Any],
    target: MnnTarget,
    settings: Settings,
    executor: Executor,
    side: Executor,
    progress: Callable[[int, int], None] | None = None,
) -> Emission:
    """Write the model directory.

    Args:
        graph: a graph for which the invariant ``mnn`` holds.
        folder: an existing empty directory.
        tokenizer: waits for the tokenizer files, which are written to the same folder beside this.
        sampling: the checkpoint's settings for generation.
        target: releases that must read the result.
        settings: runtime settings.
        executor: runs the jobs that fill the weight file.
        side: runs the conversion beside them.
        progress: called with (weights done, weights in all).

    Raises:
        LadingError: B600 to B632, B702, B793, and what `backends.mnn.run.native` and `backends.mnn.tokenizer.forms` raise.
    """
    started = time.perf_counter()
    fit(graph, target)
    layout = plan_layout(graph)
    check_storage(layout, target)
    if settings.mapped:
        check_mapped(layout, settings.memory, target)
    net = build_net(graph, layout)
    emission = Emission(folder, layout, {}, settings)
    emission.seconds["layout"] = time.perf_counter() - started
    converting: Future[None] = side.submit(_timed, emission, "convert", json_to_mnn, net, folder / configs.MODEL)
    emission.roles |= {configs.MODEL: "model", configs.WEIGHTS: "weights"}
    try:
        _fill_all(emission, executor, progress)
    finally:
        failed = converting.exception()
    if failed is not None:
        raise failed
    if settings.mapped:
        emission.mapped = mapped_keys(folder, target.versions[0], emission.digests)
    emission.tokenizer = tokenizer()
    names = (emission.tokenizer.exact, emission.tokenizer.text)
    emission.roles |= dict.fromkeys(filter(None, names), "tokenizer")
    _write_configs(graph, emission, sampling, target)
    return emission


def _timed(emission: Emission, step: str, function: Callable[..., None], *args: Any) -> None:
    started = time.perf_counter()
    function(*args)
    emission.seconds[step] = time.perf_counter() - started


def _fill_all(emission: Emission, executor: Executor, progress: Callable[[int, int], None] | None) -> None:
    layout = emission.layout
    path, rows_path = emission.folder / configs.WEIGHTS, emission.folder / configs.EMBEDDING
    weights = weight_jobs(layout, path)
    rows = embedding_jobs(layout.embedding_file, rows_path) if layout.embedding_file is not None else []
    total = sum(job.elements for job in (*weights, *rows))
    done = 0

    def advance(elements: int) -> None:
        nonlocal done
        done += elements
        if progress is not None:
            progress(done, total)

    started = time.perf_counter()
    emission.digests[configs.WEIGHTS] = fill(path, layout.nbytes, weights, executor, advance)
    if layout.embedding_file is not None:
        table = layout.embedding_file
        size = 2 * table.rows * table.columns
        emission.digests[configs.EMBEDDING] = fill(rows_path, size, rows, executor, advance)
        emission.roles[configs.EMBEDDING] = "embedding"
    emission.seconds["weights"] = time.perf_counter() - started


def tokenizer_request(
    source: Path, out: Path, target: MnnTarget, *, compare: bool, lines: Path | None
) -> TokenizerRequest:
    """The exact form, and the nearest text form when a release of the target cannot read the exact one."""
    exact = [release.version for release in target.releases if release.mtok]
    return TokenizerRequest(
        str(source),
        str(out),
        configs.TOKENIZER if exact else "",
        exact[0] if exact else "",
        configs.TOKENIZER_TEXT if target.needs_text_tokenizer else "",
        compare,
        str(lines) if lines is not None else "",
    )


def _write_configs(graph: Graph, emission: Emission, sampling: Mapping[str, Any], target: MnnTarget) -> None:
    settings, tokenizer = emission.settings, emission.tokenizer
    assert tokenizer is not None
    names = {configs.CONFIG: tokenizer.exact or tokenizer.text}
    if tokenizer.exact and tokenizer.text:
        names[configs.CONFIG_TEXT] = tokenizer.text
    rows = last_size(graph.outputs[0])
    assert rows is not None, graph.outputs[0]
    for name, tokenizer_file in names.items():
        releases = tuple(item for item in target.releases if len(names) == 1 or item.mtok is (name == configs.CONFIG))
        sampler = translate(sampling, releases, rows, {end.id: end.text for end in tokenizer.ends})
        emission.samplers[name] = (releases, sampler)
        data = configs.runtime_config(
            emission.layout,
            sampler.config,
            tokenizer_file,
            precision=settings.precision,
            memory=settings.memory,
            threads=settings.threads,
            dynamic_option=settings.dynamic_option,
            mapped={**settings.others, **emission.mapped},
        )
        write_json(emission, name, data, "config")
    data = configs.model_config(graph, emission.layout, tokenizer.template)
    write_json(emission, configs.LLM_CONFIG, data, "llm_config")


def write_json(emission: Emission, name: str, data: Mapping[str, Any], role: str) -> None:
    """Write a configuration file into the emission's folder and note its role."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    (emission.folder / name).write_text(text, encoding="utf-8")
    emission.roles[name] = role
