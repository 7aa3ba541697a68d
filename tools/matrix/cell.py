"""One cell of the matrix: a model directory on one MNN release, run in child processes and compared.

The numbers are compared with two references, both evaluated in onnxruntime from the checkpoint's own graph: the
original weights, and what `backends.mnn.read.decoded_weights`, which shares no code with the writer, decodes from the
finished files. Token ids and chat prompts are compared with the Hugging Face libraries. Whatever a run does, a crash
included, is a result.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import F32, TensorType
from ir.tensor.base import Tensor
from passes.framework.pipeline import Pipeline, Repeat

if TYPE_CHECKING:
    from backends.contract import Contract, Verification
    from backends.mnn.read.decoded_weights import MnnModel
    from backends.mnn.run.native import ModelRun
    from ir.evaluate.divergence import Distance
    from ir.evaluate.evaluator import Evaluator
    from ir.facts.model_card import ModelCard
    from ir.graph.graph import Graph
    from passes.framework.base import Pass

FORMAT = 3
"""Counts up when cells are made or judged otherwise, so that older ones are run again."""

TOKENS, PIECED, PROMPT, DECODED = 48, 40, 8, 24
"""Token ids of the prefill, of those also fed in pieces, of the greedy prompt, and decoded after it."""

CHECKS = ("load", "logits", "cache", "greedy", "tokenizer", "chat", "shipped")
"""What a cell consists of, in the order in which it is run."""

CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "再见"},
    ],
)
"""Conversations that are rendered by the chat template."""

PASSED = ("right", "as stored")
"""Statuses of cells without a fault: against the checkpoint, or only against what the folder's own files say."""

SHIPPED_FACTOR = 4.0
"""How much further from the float model than the stored weights alone the shipped settings may be.

Divergence grows with the square of the noise. Activations of 8 bits are at most as noisy as weights of 8 bits or fewer,
so the noise is at most doubled.
"""


Kind = Literal["float", "decoded weights"]


def this_platform() -> str:
    """Operating system and processor, as contracts have it."""
    return f"{platform.system()} {platform.machine()}"


def digest_of(folder: Path, names: Collection[str]) -> str:
    """SHA-256 (hex) of the names and contents of files."""
    import hashlib

    from ir.base.whole_files import sha256_of

    found = hashlib.sha256()
    for name in sorted(names):
        found.update(f"{name} {sha256_of(folder / name)}\n".encode())
    return found.hexdigest()


class Source:
    """A checkpoint: its float graph, and what the Hugging Face libraries make of the sample texts."""

    referenced = True
    """There is an original to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()

    def check(self) -> None:
        """Raise LadingError Q435 now when the tokenizer cannot be read."""
        self._encode(())

    @cached_property
    def graph(self) -> Graph:
        """The float graph from token ids to logits."""
        from frontends.checkpoint.load import load

        return load(self.folder)

    @property
    def card(self) -> ModelCard:
        """What is known of the model."""
        from ir.facts.model_card import ModelCard

        return ModelCard.of(self.graph)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that the references are made from: configuration, weights, tokenizer,
        template."""
        texts = (path.name for kind in ("*.json", "*.jinja") for path in self.folder.glob(kind))
        names = {*self.card.sources, *texts}
        return digest_of(self.folder, names)

    @cached_property
    def ids(self) -> list[int]:
        """Sample token ids within the context: half of them text, half from all over the vocabulary."""
        from backends.mnn.tokenizer.write_files import SAMPLES

        count = min(TOKENS, self.card.context or TOKENS)
        text = [token for ids in self._encode(SAMPLES) for token in ids][: count // 2]
        rng = np.random.default_rng(5)
        return text + [int(token) for token in rng.integers(0, self.card.vocab_size, count - len(text))]

    @cached_property
    def steady(self) -> int:
        """Sequences up to this length have the same logits however they are cut into calls."""
        return min(len(self.ids), self.card.steady_context or len(self.ids))

    @cached_property
    def token_ids(self) -> list[list[int]]:
        """Ids of the sample texts by the original tokenizer."""
        from backends.mnn.tokenizer.write_files import SAMPLES

        return self._encode(SAMPLES)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        from frontends.text.tokenizer import open_tokenizer

        tokenizer = open_tokenizer(self.folder)
        return [tokenizer.encode(text).ids for text in texts]

    @cached_property
    def text_form_ids(self) -> list[list[int]]:
        """Ids of the sample texts that the text form is meant to give, which reads less than the original."""
        from backends.mnn.tokenizer.forms import text_tokenizer
        from backends.mnn.tokenizer.spec import load_tokenizer
        from backends.mnn.tokenizer.write_files import SAMPLES

        tokenizer = text_tokenizer(load_tokenizer(self.folder))
        return [tokenizer.encode(text) for text in SAMPLES]

    @cached_property
    def prompts(self) -> list[str] | str:
        """`CHATS` rendered by the original template with the opening of an answer, or why that cannot be had."""
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        tokenizer = AutoTokenizer.from_pretrained(str(self.folder))
        if not tokenizer.chat_template:
            return "the checkpoint has no chat template"
        try:
            from jinja2 import TemplateError
        except ImportError:
            return "rendering the original template needs the package jinja2"
        try:
            return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in CHATS]
        except TemplateError as error:
            return f"the original template refuses the sample chats: {error}"

    @cached_property
    def _evaluator(self) -> Evaluator:
        from backends.mnn.verify.logits import MEMORY_LIMIT
        from ir.evaluate.evaluator import Evaluator

        return Evaluator(self.graph, memory_limit=MEMORY_LIMIT)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Float32[len(ids), vocabulary] of the original weights."""
        feeds = {self.graph.inputs[0].name: np.array([list(ids)], dtype=np.int64)}
        return rows_of(self._evaluator.run(feeds))


class Artefact:
    """A model directory with the checkpoint it was made from, and its reference logits."""

    def __init__(self, family: str, precision: str, folder: Path, source: Source, contract: Contract) -> None:
        self.family = family
        self.precision = precision
        self.folder = folder
        self.source = source
        self.contract = contract
        self._known: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the names and contents of all files but the contract, which the matrix itself writes to."""
        from backends.contract import CONTRACT_FILE

        found = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return digest_of(self.folder, {name for name in found if name != CONTRACT_FILE})

    @cached_property
    def narrowest(self) -> int:
        """Fewest bits of a stored weight; embedding rows that are stored as half floats without loss count as 32."""
        dtypes = self.source.card.dtypes
        return min(
            32 if item.layout == "rows-bf16" and (item.method == "split" or dtypes == ("bf16",)) else item.bits
            for item in (weight.storage for weight in self.contract.weights)
        )

    @property
    def kind(self) -> Kind:
        """What exact arithmetic must reproduce: the float model where nothing was rounded."""
        return "float" if self.narrowest == 32 else "decoded weights"

    def logits(self, ids: Sequence[int], kind: Kind) -> np.ndarray:
        """Reference logits float32[len(ids), vocabulary] of a prefill; equal ids are evaluated once.

        Raises:
            LadingError: B680 to B682 when the stored weights cannot be decoded.
        """
        key = kind, tuple(ids)
        with self.source.lock:
            if key not in self._known:
                self._known[key] = self.source.logits(ids) if kind == "float" else self._decoded(ids)
            return self._known[key]

    def _decoded(self, ids: Sequence[int]) -> np.ndarray:
        evaluator, model = self._stored
        numbers = np.array(list(ids))
        feeds = evaluator.graph.facts["dynamic-inputs"].feeds(evaluator.graph, numbers)
        hidden = self.source.card.hidden_size
        # An embedding that must stay exact comes as several rows, whose sum it is.
        parts = model.embedding_rows(numbers).reshape(len(numbers), -1, hidden)
        feeds["input_ids"] = np.add.reduce(parts, axis=1, keepdims=True)
        return rows_of(evaluator.run(feeds))

    @cached_property
    def _stored(self) -> tuple[Evaluator, Any]:
        """The float graph, rewritten as the model's was, with every weight replaced by what the reader decodes from the
        files."""
        from backends.mnn.read.decoded_weights import MnnModel
        from backends.mnn.verify.logits import MEMORY_LIMIT
        from frontends.checkpoint.load import load
        from ir.evaluate.evaluator import Evaluator
        from ir.tensor.rearranged import transposed
        from passes.framework.manager import PassManager

        model = MnnModel(self.folder)
        graph = load(self.source.folder)
        PassManager(rewriting_of(self.contract.pipeline.text)).run(graph)
        names = {name.removesuffix(".conv").removesuffix(".matmul"): name for name in model.linears}
        for node in list(graph.nodes):
            if node.op == "MatMul":
                name = names[node.output.name.removesuffix(".matmul")]
                graph.set_input(node, 1, graph.add_const(name, transposed(_StoredRows(model, name))))
        return Evaluator(graph, memory_limit=MEMORY_LIMIT), model


def rewriting_of(text: str) -> Pipeline:
    """Of a pipeline, what it does to a graph before weights are given a storage: matrices joined, turned or absorbed have
    other names and numbers from there on. Statistics are not gathered."""
    from passes.framework.load import load

    passes = load(text).items
    stored = next((place for place, one in enumerate(passes) if "precision-plan" in _told(one)), len(passes))
    return Pipeline(tuple(one for one in passes[:stored] if "calibration" not in _told(one)))


def _told(item: Pass | Repeat) -> frozenset[str]:
    """Properties that a part of a pipeline establishes."""
    passes = item.body.passes() if isinstance(item, Repeat) else [item]
    return frozenset(name for one in passes for name in one.establishes)


class _StoredRows(Tensor):
    """A weight as the reader decodes it from the files, rows at a time."""

    def __init__(self, model: MnnModel, name: str) -> None:
        item = model.linears[name]
        super().__init__(TensorType(F32, (item.rows, item.columns)), f"{model.weight_path.name}:{name}")
        self.model = model
        self.linear = name

    def rows(self, start: int, stop: int) -> np.ndarray:
        self._bounds(start, stop)
        return self.model.decode(self.linear, start, stop)

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return "stored_rows", (str(self.model.folder), self.linear), {}


def rows_of(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The logits among the outputs of a graph, float32[positions, vocabulary]."""
    logits = outputs["logits"]
    return logits.reshape(-1, logits.shape[-1])


@dataclass
class _Judge:
    """Turns the two runs of a cell into checks."""

    artefact: Artefact
    release: str
    exact: ModelRun
    shipped: ModelRun | None
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    distances: dict[str, Distance] = field(default_factory=dict)

    def all(self) -> dict[str, dict[str, Any]]:
        """Every check in order; one that the process did not live to see fails with how it ended."""
        self.checks["load"] = _check(self.exact.loaded, "" if self.exact.loaded else _why_not_loaded(self.exact))
        if not self.exact.loaded:
            return self.checks
        for number, name in enumerate(CHECKS[1:6]):
            result = self.exact.results[number]
            if result is None or "error" in result:
                ended = self.exact.child.outcome if result is None else result["error"]
                self.checks[name] = _check(False, f"the process {ended}" if result is None else ended)
                if result is None:
                    return self.checks
                continue
            try:
                self.checks[name] = getattr(self, f"_{name}")(result)
            except LadingError as error:
                self.checks[name] = _check(False, f"no reference: {error.diagnostics[0].message}")
        self.checks["shipped"] = self._shipped()
        return self.checks

    def _logits(self, result: Mapping[str, Any]) -> dict[str, Any]:
        got = np.concatenate(result["logits"])
        ids = self.artefact.source.ids
        found = self._near(got, self.artefact.logits(ids, self.artefact.kind))
        if found["ok"]:
            self.distances["exact"] = _distance(self.artefact.logits(ids, self.artefact.kind), got)
            if self.artefact.source.referenced:
                self.distances["float"] = _distance(self.artefact.logits(ids, "float"), got)
        return found

    def _cache(self, result: Mapping[str, Any]) -> dict[str, Any]:
        got = np.concatenate(result["logits"])
        return self._near(got, self.artefact.logits(self.artefact.source.ids[: len(got)], self.artefact.kind))

    def _near(self, got: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
        from backends.bars import exact_bar

        if got.shape != wanted.shape:
            return _check(False, f"logits {list(got.shape)} instead of {list(wanted.shape)}")
        gap = float(np.abs(got - wanted).max())
        bar = exact_bar(float(np.abs(wanted).max()))
        note = "" if gap <= bar else f"{gap:.3g} off where {bar:.3g} is allowed"
        return {**_check(gap <= bar, note), "error": gap if np.isfinite(gap) else None, "bar": bar}

    def _greedy(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Each token must be the reference's first choice, or level with it within rounding."""
        from backends.bars import exact_bar

        prompt, ids = self.exact.actions[2]["prompt"], result["ids"]
        wanted = self.artefact.logits([*prompt, *ids[:-1]], self.artefact.kind)[len(prompt) - 1 :]
        bar = 2 * exact_bar(float(np.abs(wanted).max()))
        missed = [bool(row[token] < row.max() - bar) for row, token in zip(wanted, ids, strict=True)]
        equal = missed.index(True) if True in missed else len(ids)
        note = "" if equal == len(ids) else f"token {equal + 1} is not the reference's"
        return {**_check(equal == len(ids), note), "equal": equal, "tokens": len(ids)}

    def _tokenizer(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The exact form must give the original's ids, the text form those it is meant to give."""
        from backends.mnn.target.releases import PROFILES

        source, got = self.artefact.source, result["ids"]
        if not source.referenced:
            return self._tokens_in_range(got)
        exact = PROFILES[self.release].mtok
        differing = sum(a != b for a, b in zip(got, source.token_ids, strict=True))
        wanted = source.token_ids if exact else source.text_form_ids
        ok = got == wanted
        form = "exact form" if exact else "text form"
        note = f"{form}: {differing} of {len(got)} texts get other ids than the original tokenizer gives"
        if not ok and not exact:
            note += ", not the ones this form is meant to give"
        return {**_check(ok, note), "form": form, "differing": differing, "of": len(got)}

    def _tokens_in_range(self, got: Sequence[Sequence[int]]) -> dict[str, Any]:
        size = self.artefact.source.card.vocab_size
        wild = sum(any(not 0 <= token < size for token in ids) for ids in got)
        note = (
            f"{wild} of {len(got)} texts get ids outside the vocabulary"
            if wild
            else "no original tokenizer to compare with"
        )
        return {"ok": False if wild else None, "note": note}

    def _chat(self, result: Mapping[str, Any]) -> dict[str, Any]:
        wanted = self.artefact.source.prompts
        if isinstance(wanted, str):
            return {"ok": None, "note": wanted}
        wrong = [number for number, text in enumerate(result["prompts"]) if text != wanted[number]]
        return _check(not wrong, f"{result['prompts'][wrong[0]]!r} is not {wanted[wrong[0]]!r}" if wrong else "")

    def _shipped(self) -> dict[str, Any]:
        """The settings that are written into the configuration: the numbers must be near the float model's."""
        from backends.bars import KL_BARS

        assert self.shipped is not None
        result = self.shipped.results[0]
        if result is None or "error" in result:
            return _check(False, self.shipped.failure or "no result")
        ids = self.artefact.source.ids
        known = self.artefact.source.referenced
        got, wanted = (
            np.concatenate(result["logits"]),
            self.artefact.logits(ids, "float" if known else "decoded weights"),
        )
        if got.shape != wanted.shape or not np.isfinite(got).all():
            return _check(False, "logits that are not numbers, or of another shape")
        found = self.distances["shipped"] = _distance(wanted, got)
        bar = KL_BARS[self.artefact.narrowest]
        # What a width costs is known for trained models only; of others the weights' share must explain the whole.
        weights = self.distances["float"].kl if "float" in self.distances else 0.0
        ok = found.kl <= max(bar, SHIPPED_FACTOR * weights)
        whose = f"the float model, {weights:.2g} of it by stored weights" if known else "the stored weights"
        note = f"KL {found.kl:.2g} from {whose}"
        return {**_check(ok, note), "kl": found.kl, "top1": found.top1, "kl_weights": weights}


def _why_not_loaded(run: ModelRun) -> str:
    """How the process ended, and its last words where it could say something."""
    words = [line for line in run.child.log.splitlines() if line.strip()]
    told = f": {words[-1].strip()}" if words and run.child.signal is None else ""
    return f"{run.failure}{told}"


def _check(ok: bool, note: str) -> dict[str, Any]:
    return {"ok": bool(ok), "note": note}


def _distance(wanted: np.ndarray, got: np.ndarray) -> Distance:
    from ir.evaluate.divergence import DistanceMeter

    meter = DistanceMeter()
    meter.add(wanted, got)
    return meter.result()


def _actions(source: Source) -> list[dict[str, Any]]:
    from backends.mnn.tokenizer.write_files import SAMPLES

    ids = source.ids
    pieced = ids[: min(PIECED, source.steady)]
    cut = [pieced[:13], pieced[13:14], pieced[14:25], *([token] for token in pieced[25:])]
    prompt = ids[: min(PROMPT, source.steady // 2)]
    return [
        {"do": "forward", "pieces": [ids]},
        {"do": "forward", "pieces": [piece for piece in cut if piece]},
        {"do": "greedy", "prompt": prompt, "tokens": min(DECODED, source.steady - len(prompt))},
        {"do": "encode", "texts": list(SAMPLES)},
        {"do": "chat_template", "chats": list(CHATS)},
    ]


def run_cell(artefact: Artefact, release: str, interpreter: Path, timeout_s: float) -> dict[str, Any]:
    """Run one cell and judge it.

    Returns:
        ``status`` (``right``, ``as stored``, ``wrong``, ``crash``, ``timeout`` or ``no load``), ``signal``, ``error``
        (largest difference of a logit), ``checks`` by name, ``seconds``, ``log`` of a run with a fault, and
        ``verified``, the records for the contract of one without.
    """
    from backends.mnn.run.native import EXACT_CONFIG, run_model
    from backends.mnn.write.configs import config_for

    config = config_for(artefact.folder, release)
    with artefact.source.lock:
        actions = _actions(artefact.source)
    options = {"interpreter": interpreter, "timeout_s": timeout_s}
    exact = run_model(config, actions, overrides=EXACT_CONFIG, **options)
    shipped = run_model(config, actions[:1], overrides={"all_logits": True}, **options) if exact.loaded else None
    with artefact.source.lock:
        judge = _Judge(artefact, release, exact, shipped)
        checks = judge.all()
    runs = [run for run in (exact, shipped) if run is not None]
    status = _status(runs, checks, artefact.source.referenced)
    errors = [checks[name].get("error") for name in ("logits", "cache") if name in checks]
    return {
        "status": status,
        "signal": next((run.child.signal for run in runs if run.child.signal), None),
        "error": max((error for error in errors if error is not None), default=None),
        "checks": checks,
        "mnn": exact.load.get("version"),
        "seconds": {"load": exact.load.get("load_s"), "total": sum(run.child.wall_s for run in runs)},
        "log": "" if status in PASSED else _log(runs),
        "verified": [item.to_json() for item in _records(judge)] if status in PASSED else [],
    }


def _status(runs: Sequence[ModelRun], checks: Mapping[str, Mapping[str, Any]], referenced: bool) -> str:
    if any(run.child.timed_out for run in runs):
        return "timeout"
    if any(run.child.signal for run in runs):
        return "crash"
    if not checks["load"]["ok"]:
        return "no load"
    if any(check["ok"] is False for check in checks.values()):
        return "wrong"
    return "right" if referenced else "as stored"


def _log(runs: Sequence[ModelRun]) -> str:
    failed = next((run for run in runs if run.failure), runs[0])
    return "\n".join(failed.child.log.splitlines()[-12:])


def _records(judge: _Judge) -> list[Verification]:
    """What the contract keeps of a right cell: exact arithmetic and shipped settings."""
    from backends.mnn.run.native import EXACT_CONFIG

    artefact = judge.artefact
    written = artefact.contract.runtime.settings
    kinds: list[tuple[str, Kind]] = [("exact", artefact.kind), ("float", "float")]
    if not artefact.source.referenced:
        return [_record(judge, "exact", artefact.kind, EXACT_CONFIG, judge.checks["greedy"])]
    found = [
        _record(judge, name, kind, EXACT_CONFIG, judge.checks["greedy"] if name == "exact" else None)
        for name, kind in (kinds if artefact.kind != "float" else kinds[:1])
    ]
    return [*found, _record(judge, "shipped", "float", written, None)]


def _record(
    judge: _Judge, name: str, kind: Kind, settings: Mapping[str, Any], greedy: Mapping[str, Any] | None
) -> Verification:
    from backends.contract import Verification
    from backends.mnn.contract import run_settings

    distance = judge.distances[name]
    return Verification(
        release=judge.release,
        platform=this_platform(),
        settings=run_settings(settings),
        reference=kind,
        prompt_tokens=distance.positions,
        max_abs_error=distance.max_abs,
        kl=distance.kl,
        top1=distance.top1,
        decode_tokens=greedy["tokens"] if greedy else None,
        decode_equal_tokens=greedy["equal"] if greedy else None,
    )
