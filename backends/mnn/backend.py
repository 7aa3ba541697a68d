"""MNN as something to compile for: a directory for its language-model engine.

Everything that only such a directory has is here: the tokenizer in MNN's forms, the prompts that verification
continues, sampling settings, the runtime's own configuration.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.backend import Backend, Compilation, Figures, Made, Order
from backends.mnn.card import completed, last_size
from backends.mnn.target.releases import MnnTarget, target
from ir.base.diag import Diagnostic, LadingError
from ir.facts.model_card import ModelCard

if TYPE_CHECKING:
    from backends.contract import Contract
    from backends.mnn.chat.plan import ChatJob
    from backends.mnn.chat.report import ChatReport
    from backends.mnn.sampling.translate import Sampler
    from backends.mnn.tokenizer.write_files import TokenizerFiles
    from backends.mnn.verify.logits import Subject
    from backends.mnn.verify.written_weights import WeightError
    from backends.mnn.write.llm_folder import Emission, Settings
    from backends.plan import Planned, Repeats
    from backends.verdict import Implementation, Reading
    from frontends.onnx.original import AsRead
    from frontends.text.tokenizer import ForeignTokenizer
    from ir.graph.graph import Graph
    from ir.target.target import Target

QUICK_SAMPLE = 1 << 20
"""Elements per matrix that a quick read-back decodes."""

PROMPTS = (
    "import os\nimport sys\n\n\ndef ",
    "class TestCase(unittest.TestCase):\n    def setUp(self):\n        ",
    "The capital of France is",
    "人工智能正在改变我们的生活,",
)
"""Texts that verification continues."""

PROMPT_TOKENS = 24
"""Length of the prompts of random ids that verification continues where no tokenizer is known."""

CHECKPOINTS = ("checkpoint", "torch")
"""Frontends that read checkpoints."""

THREADS = 4
"""Runtime threads that are written when nobody says."""


class MnnLlm(Backend):
    """A model directory for MNN's engine for language models."""

    runtime = "MNN"
    passes = "default"
    options = frozenset(
        {"embedding", "kl_bar", "memory", "mmap", "precision", "settings", "text", "threads", "tokenizer"}
    )
    frontends = ("checkpoint", "torch", "mnn")

    def accepts(self, graph: Graph) -> bool:
        """True for graphs from token ids to scores of tokens."""
        from passes.inputs.language_model import looks_like_one

        return looks_like_one(graph)

    def target(self, text: str | None) -> MnnTarget:
        """``portable``, a release, or clauses such as ``>=3.4,<3.6``."""
        return target() if text is None else target(text)

    def plan(
        self,
        graph: Graph,
        target: Target,
        options: Mapping[str, Any],
        *,
        repeats: Repeats,
        shares: Mapping[str, float],
        contexts: Sequence[int],
    ) -> Planned:
        """Sizes of the files, what runs in memory and what is read for each token; errors as for writing."""
        from backends.mnn.plan import plan

        assert isinstance(target, MnnTarget)
        settings = chosen_settings(graph, options, target).as_run()
        return plan(graph, target, settings, repeats=repeats, shares=shares, contexts=contexts)

    def releases(self) -> Sequence[str]:
        """Those that have an engine for language models in their wheel."""
        from backends.mnn.target.environments import LLM_RELEASES

        return LLM_RELEASES

    def begin(self, order: Order) -> Compilation:
        """Begin to compile.

        Raises:
            LadingError: U906 the result is to be run and MNN is not installed, B743 the model is an MNN model already,
                B744 it has no tokenizer, B795 a setting that the target's releases do not read.
        """
        from backends.mnn.target.environments import installed_version
        from backends.mnn.target.run_settings import read_settings

        if order.origin.frontend == "mnn":
            hint = f"lading repair {order.origin.model} -o OUT writes it again so that other releases run it"
            raise LadingError("B743", "this is an MNN model already", order.origin.model, hint)
        if order.verify != "none" and installed_version() is None:
            raise LadingError(
                "U906",
                "verification needs the MNN runtime, which is not installed",
                hint="pip install MNN, or --verify none",
            )
        if order.options.get("tokenizer") is None and order.origin.tokenizer is None:
            lies = (
                "beside the model or in the folder above" if order.origin.folder.name == "onnx" else "beside the model"
            )
            message = f"the model has no tokenizer: no tokenizer.json or other vocabulary lies {lies}"
            hint = (
                "name its folder with --tokenizer DIR, or copy tokenizer.json, tokenizer_config.json and "
                "generation_config.json there; --tokenizer none makes a directory that runs on token ids"
            )
            raise LadingError("B744", message, order.origin.model, hint)
        assert isinstance(order.target, MnnTarget)
        read_settings(order.options.get("settings") or "", order.target.versions)
        if order.options.get("tokenizer") == "none" and order.options.get("text") is not None:
            hint = "leave --text out, or name the folder of the tokenizer with --tokenizer"
            raise LadingError(
                "U919", "perplexity is measured on text, which takes a tokenizer", order.origin.model, hint
            )
        return LlmCompilation(order)


def _listed(graph: Graph) -> str:
    return ", ".join(repr(value) for value in graph.inputs) or "none"


def chosen_settings(graph: Graph, given: Mapping[str, Any], target: MnnTarget) -> Settings:
    """The runtime settings that suit the stored widths of a legal graph, but for those that the user gives.

    Raises:
        LadingError: B795 a given one that the target's releases do not read.
    """
    from backends.mnn.target.run_settings import read_settings
    from backends.mnn.write.configs import deciding, recommend
    from backends.mnn.write.llm_folder import Settings

    best = recommend(deciding(graph))
    memory = given.get("memory") or best.memory
    option = best.dynamic_option if memory == "low" else 0
    mapped = bool(given.get("mmap"))
    others = read_settings(given.get("settings") or "", target.versions)
    option = others.pop("dynamic_option", option)
    threads = given.get("threads") or THREADS
    return Settings(given.get("precision") or best.precision, memory, threads, option, mapped, others)


class LlmCompilation(Compilation):
    """One model directory in the making."""

    native = ("onnxruntime",)
    emission: Emission

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        assert isinstance(order.target, MnnTarget)
        self.target = order.target
        self.errors: dict[str, WeightError] = {}
        self.tried: list[str] = []
        """Releases on which tokens were sampled with the settings as written."""
        self._written: Callable[[], TokenizerFiles] | None = None
        self._chat_job: ChatJob | None = None
        self._as_read: AsRead | None = None
        self.chat: ChatReport | None = None

    # ---- the tokenizer ----

    @cached_property
    def tokenizer(self) -> Path | None:
        """The folder with the tokenizer: the one that is named, else that of the model; None to do without."""
        named: Path | str | None = self.order.options.get("tokenizer")
        return None if named == "none" else Path(named) if named is not None else self.order.origin.tokenizer

    @contextmanager
    def working(self, folder: Path) -> Iterator[None]:
        """The tokenizer is written beside everything else."""
        from backends.mnn.chat.plan import ChatJob
        from backends.mnn.tokenizer.write_files import TokenizerJob
        from backends.mnn.write.llm_folder import tokenizer_request
        from frontends.containers.stand_ins import require_real
        from frontends.tokenizers.files import tokenizer_files

        self.folder = folder
        if self.tokenizer is None:
            yield
            return
        for path in tokenizer_files(self.tokenizer):
            require_real(path)
        compare = self.order.verify != "none"
        lines = self.order.options.get("text")
        job = tokenizer_request(self.tokenizer, folder, self.target, compare=compare, lines=lines)
        if self.order.origin.frontend in (*CHECKPOINTS, "onnx"):
            job = replace(job, model=str(self.order.origin.folder))
        older = not all(release.mtok for release in self.target.releases)
        with TokenizerJob(job) as running, ChatJob(self.tokenizer, older=older) as self._chat_job:
            self._written = running.result
            yield

    def _tokenizer_files(self, graph: Graph) -> Callable[[], TokenizerFiles]:
        """What waits for the tokenizer; where there is none, what writes one that the engine can load."""
        if self._written is not None:
            return self._with_template
        from backends.mnn.tokenizer.placeholder import write_placeholder

        return lambda: write_placeholder(self.folder, self.target, _vocabulary(graph))

    def _with_template(self) -> TokenizerFiles:
        """Wait for the tokenizer and the chat template; the template in the spelling that all releases share."""
        from backends.mnn.chat.report import ChatReport

        assert self._written is not None and self._chat_job is not None
        files, plan = self._written(), self._chat_job.result()
        if plan is None or "chat_template" not in files.template:
            return files
        template = plan.written(files.template)
        rewritten = template != dict(files.template)
        self.chat = ChatReport(plan, template, rewritten, {}, tuple(self.target.versions))
        self.warnings.extend(self.chat.warnings())
        return replace(files, template=template)

    def _words(self, text: Path) -> list[int]:
        """Token ids of the text to measure perplexity on; without a tokenizer there are none."""
        from frontends.text.calibration_text import whole_text

        return self._encode(whole_text(text, self.tokenizer)) if self.tokenizer is not None else []

    def _try_chats(self) -> Callable[[], None]:
        """Begin to render chats beside the verification of numbers; the result waits, and keeps what is best."""
        from backends.mnn.chat.plan import use_template
        from backends.mnn.chat.report import tried
        from backends.mnn.target.environments import installed_version, interpreters
        from backends.mnn.write import configs

        planned = self.chat
        if planned is None or planned.plan.problem:
            return lambda: None
        found = {release: python for release, python in interpreters().items() if release in self.target.versions}
        if self.order.verify == "quick":
            # The installed release, or the newest one where that is not promised.
            one = installed_version() if installed_version() in found else next(reversed(found), None)
            found = {release: python for release, python in found.items() if release == one}
        job = self.order.side.submit(tried, planned.plan, planned.written, found, self.target.versions)

        def finish() -> None:
            self.chat = job.result()
            if dict(self.chat.written) != dict(planned.written):
                use_template(self.folder, self.chat.written, configs.LLM_CONFIG)
            self.warnings.extend(self.chat.warnings())
            if problems := self.chat.problems():
                raise LadingError.of(problems)

        return finish

    @cached_property
    def _opened(self) -> ForeignTokenizer:
        from frontends.text.tokenizer import open_tokenizer

        assert self.tokenizer is not None
        return open_tokenizer(self.tokenizer)

    def _encode(self, text: str) -> list[int]:
        return self._opened.encode(text).ids

    def _prompts(self, graph: Graph) -> list[list[int]]:
        if self.tokenizer is not None:
            return [ids for ids in map(self._encode, PROMPTS) if ids]
        import numpy as np

        rng = np.random.default_rng(3)
        return [[int(number) for number in rng.integers(0, _vocabulary(graph), PROMPT_TOKENS)] for _ in PROMPTS]

    # ---- the steps ----

    def opened(self, graph: Graph) -> None:
        """Refuse what the target cannot run. Note what an ONNX file takes: verification feeds it. An embedding that the
        graph does not hold is brought in."""
        from backends.mnn.target import needs

        needs.require(graph, self.target.releases)
        self.warnings += needs.warnings(graph, self.target.releases)
        named = self.order.options.get("embedding")
        if self.order.origin.frontend != "onnx":
            _require_rows(named, self.order.origin.model)
            return
        from frontends.onnx.original import as_read
        from passes.inputs.language_model import look_up_rows, rows_input

        self._as_read = as_read(self.order.origin.path, graph)
        rows = rows_input(graph)
        if rows is None:
            _require_rows(named, self.order.origin.model)
            return
        from frontends.onnx.embedding import find_rows

        found = find_rows(self.order.origin.path, named, rows)
        self._as_read = replace(self._as_read, rows=rows.value.name, table=found.table)
        look_up_rows(graph, rows, found.table)
        if found.stored:
            message = "the rows of the embedding are taken as the checkpoint stores them"
            hint = "where the model multiplies them by a number before the graph begins, as Gemma does, give a file of rows"
            self.warnings.append(Diagnostic("B675", message, str(found.source), hint, "warning"))

    def check(self, graph: Graph, pipeline: str) -> None:
        """The pipeline must end in the form that is written.

        Raises:
            LadingError: U905 it does not, P351 the graph is no language model.
        """
        from backends.mnn.lower.stage import problems
        from ir.facts.inputs import DynamicInputs
        from ir.verify.stages import signature

        inputs = graph.fact(DynamicInputs)
        if inputs is not None and not inputs.signature:
            message = "no input of the graph looks up rows of a constant embedding table"
            hint = (
                "the engine for language models runs decoders from token ids; --to mnn makes a module of other graphs"
            )
            raise LadingError("P351", message, f"graph {graph.name}, inputs {_listed(graph)}", hint)
        found = problems(graph) or signature(graph)
        if found:
            first = found[0]
            raise LadingError(
                "U905",
                f"this pipeline does not end in a graph that MNN can hold: {first.message}",
                where=f"pipeline {pipeline}\n{first.where}",
                hint="begin it with discover-inputs and end it with legalize-mnn, as the pipeline 'default' does",
            )

    def emit(self, graph: Graph) -> None:
        """Write model, weights, tokenizer and configuration."""
        from backends.mnn.summary import sampling_warnings
        from backends.mnn.write.llm_folder import emit

        if self._chat_job is not None:
            # From now on there is work for all processors; before, it would take turns with what the weights wait for.
            self._chat_job.begin()
        self.order.say("writing the weights")
        self.emission = emit(
            graph,
            self.folder,
            tokenizer=self._tokenizer_files(graph),
            sampling=self._sampling(graph),
            target=self.target,
            settings=self._settings(graph),
            executor=self.order.jobs,
            side=self.order.side,
            progress=self.order.weights,
        )
        self.warnings += sampling_warnings(self.emission)
        self.order.lap("write")

    def _sampling(self, graph: Graph) -> Mapping[str, Any]:
        """The settings for generation: of the checkpoint, else of the folder with the tokenizer."""
        card = ModelCard.of(graph)
        if self.order.origin.frontend in CHECKPOINTS:
            return card.sampling
        folder = self.tokenizer or self.order.origin.folder
        from frontends.checkpoint.generation import read_generation

        found = read_generation(folder)
        self.warnings += found.warnings
        return found.given

    def _settings(self, graph: Graph) -> Settings:
        """What suits the stored widths, unless the user says otherwise."""
        return chosen_settings(graph, self.order.options, self.target)

    def verify(self, graph: Graph, original: Graph) -> None:
        """Decode what was written, run it on the installed MNN, and compare."""
        from backends.mnn.target.environments import installed_version
        from backends.mnn.verify.logits import LEVELS, Subject, verify
        from backends.mnn.verify.written_weights import read_back

        order, emission = self.order, self.emission
        chats = self._try_chats()
        order.say("reading back what was written")
        sample = QUICK_SAMPLE if order.verify == "quick" else None
        self.errors = read_back(graph, emission.layout, emission.folder, order.pool, sample=sample)
        order.lap("read back")
        text = order.options.get("text")
        words = self._words(text) if text is not None else []
        settings = emission.settings.as_run()
        version = installed_version() or "unknown"
        subject = Subject(
            emission.folder,
            original,
            graph,
            self._prompts(graph),
            words,
            settings,
            sampler=self._sampler_on(version),
            ends=self._ends,
            texts=[text for text, _ in self._samples],
            readable=self.tokenizer is not None,
            checkpoint=self._checkpoint(),
            implementation=self._implementation(graph, original),
        )
        self.verification = verify(
            subject,
            LEVELS[order.verify],
            version=version,
            max_kl=order.options.get("kl_bar"),
            progress=order.say,
        )
        self.verification.require()
        if emission.mapped:
            order.say("loading again with mapped weights")
            self._check_mapped(version)
        self.warnings += [*self.verification.warnings, *self._other_ids(version)]
        self.tried = [version] if self.verification.trial is not None else []
        if order.verify == "full":
            self._try_others()
            self._compare_others(subject)
        order.say("waiting for the releases to render chats")
        chats()
        order.lap("verify")

    def _check_mapped(self, version: str) -> None:
        """Load with mapped weights on the release that the model is for, where this machine has it."""
        from backends.mnn.target.environments import interpreters
        from backends.mnn.write.mapped import check_second_load

        wanted = self.target.versions[0]
        python = sys.executable if version == wanted else interpreters().get(wanted)
        if python is not None:
            check_second_load(self.emission.folder, self.emission.settings.as_run(), python)

    @property
    def _ends(self) -> list[int]:
        written = self.emission.tokenizer
        assert written is not None
        return [end.id for end in written.ends]

    @property
    def _samples(self) -> Sequence[tuple[str, Sequence[int]]]:
        """Strings whose ids on the runtime are compared with the original tokenizer's."""
        written = self.emission.tokenizer
        assert written is not None
        return written.samples

    def _sampler_on(self, version: str) -> Sampler | None:
        """The sampler that the installed release reads; None where it is for releases with a fixed one, which the
        installed one does not have."""
        from backends.mnn.write.configs import config_for

        releases, sampler = self.emission.samplers[config_for(self.emission.folder, version).name]
        fixed = not any(release.sampler_steps for release in releases)
        return None if fixed and version not in self.target.versions else sampler

    def _try_others(self) -> None:
        """Sample on every other release of the target that this machine can run."""
        from backends.mnn.target.environments import interpreters
        from backends.mnn.verify.sampling import try_release

        assert self.verification is not None
        if self.verification.trial is None:
            return
        for version, python in interpreters().items():
            if version in self.tried or version not in self.target.versions:
                continue
            self.order.say(f"sampling on MNN {version}")
            sampler = next(one for releases, one in self.emission.samplers.values()
                           if version in [release.version for release in releases])  # fmt: skip
            if problems := try_release(self.emission.folder, version, python, self.verification.trial, sampler):
                raise LadingError.of(problems)
            self.tried.append(version)

    def _compare_others(self, subject: Subject) -> None:
        """Run a model that came as a graph on every other release too: what holds for families is not known of it."""
        from backends.mnn.target.environments import installed_version, interpreters
        from backends.mnn.verify.logits import OTHER, verify

        assert self.verification is not None
        if subject.implementation is None:
            return
        plain = replace(subject, text=(), texts=(), sampler=None)
        for version, python in interpreters().items():
            if version == installed_version() or version not in self.target.versions:
                continue
            self.order.say(f"running on MNN {version}")
            bar = self.order.options.get("kl_bar")
            found = verify(plain, OTHER, version=version, interpreter=python, max_kl=bar)
            found.require()
            self.verification.measurements += found.measurements

    def _implementation(self, graph: Graph, original: Graph) -> Implementation | None:
        """What else computes the model and is run at every level: onnxruntime an ONNX file, `transformers` what torch
        exported."""
        if self._as_read is not None:
            return self._as_read.reference(graph, completed(graph).head_dim)
        if self.order.origin.frontend != "torch":
            return None
        from backends.verdict import transformers_of

        return transformers_of(self.order.origin.folder, ModelCard.of(original))

    def _checkpoint(self) -> Path | None:
        """The folder that the original implementation can read."""
        return self.order.origin.folder if self.order.origin.frontend in CHECKPOINTS else None

    def judged(self) -> str | None:
        """The release that ran, and what was lost there."""
        found = self.verification
        if found is None or found.loss is None:
            return None
        return f"on MNN {found.measurements[0].release}: {found.loss.told(found.trained)}"

    def reading(self) -> Reading:
        """Whether the checkpoint was read right."""
        from backends.verdict import Reading

        return self.verification.reading if self.verification is not None else Reading()

    def worst_weights(self, graph: Graph) -> Sequence[tuple[str, str, float]]:
        """The weights whose stored numbers are farthest off."""
        from backends.mnn.verify.written_weights import worst_weights

        return worst_weights(self.emission.layout, self.order.pool)

    def contract(self, graph: Graph, made: Made) -> Contract:
        """What the directory promises."""
        from backends.mnn.contract import make_contract

        return make_contract(
            graph,
            self.emission,
            target=self.target,
            made=made,
            errors={name: (item.rms_relative, item.max_abs) for name, item in self.errors.items()},
            measurements=self.verification.measurements if self.verification is not None else [],
            tried=self.tried,
            executor=self.order.pool,
            chat=self.chat,
        )

    # ---- for people ----

    def lines(self) -> list[tuple[str, str]]:
        """The tokenizer files and what reads them, the chat template, how tokens are chosen until which, and what else
        was run."""
        from backends.mnn.summary import close_text, ends_text, others_text, sampler_text, tokenizer_text

        written = self.emission.tokenizer
        tokenizer = ("tokenizer", tokenizer_text(written, self.target, self._differing()))
        sampler = ("sampler", sampler_text(self.emission))
        measured = self.verification.measurements if self.verification is not None else []
        told = (("releases", others_text(measured)), ("uncounted", close_text(measured))) if measured else ()
        more = [(word, text) for word, text in told if text]
        if written is None or not written.kind:
            return [tokenizer, sampler, *more]
        chat = self.chat.text() if self.chat is not None else "no template"
        return [tokenizer, ("chat", chat), sampler, ("ends at", ends_text(written)), *more]

    def _differing(self) -> tuple[int, int] | None:
        """How many texts got other ids on the runtime, of how many; None where none were encoded."""
        if self.verification is None or not self.verification.encoded:
            return None
        encoded = self.verification.encoded
        pairs = [(ids, got) for (_, ids), got in zip(self._samples, encoded, strict=True) if got is not None]
        return sum(list(ids) != got for ids, got in pairs), len(pairs)

    def _other_ids(self, version: str) -> list[Diagnostic]:
        """A test string that the exact form encodes otherwise; raw text that is known to be is told elsewhere."""
        from backends.mnn.summary import other_ids

        written = self.emission.tokenizer
        if self.verification is None or written is None or not written.exact or written.raw:
            return []
        return other_ids(version, written, self.verification.encoded)

    def figures(self) -> Figures | None:
        """The measurements."""
        from backends.mnn.summary import figures

        return figures(self.verification.measurements) if self.verification is not None else None

    def sample(self) -> tuple[str, str] | None:
        """The first prompt and what the runtime made of it."""
        if self.verification is None or not self.verification.sample or self.tokenizer is None:
            return None
        return PROMPTS[0], self._opened.decode(self.verification.sample, skip_special_tokens=True)


def _require_rows(named: Path | None, model: str) -> None:
    """Refuse an embedding for a model that takes token ids."""
    if named is not None:
        message = "--embedding has no effect: the model takes token ids and holds its embedding"
        raise LadingError("U918", message, model, "leave --embedding out")


def _vocabulary(graph: Graph) -> int:
    """How many tokens the logits of a legal graph tell apart."""

    rows = last_size(graph.outputs[0])
    assert rows is not None, graph.outputs[0]
    return rows


__all__ = ["PROMPTS", "QUICK_SAMPLE", "LlmCompilation", "MnnLlm"]
