"""Sample some tokens on a real release with the settings as written, and see that it stops where it should.

No setting that crashes passes this way, and none that the runtime takes for something else: every token must be one that
transformers could have chosen from the same logits (`backends.mnn.sampling.reference`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.mnn.run.native import ModelRun, run_model
from backends.mnn.sampling.reference import out_of_reach
from backends.mnn.sampling.translate import Sampler
from backends.mnn.write.configs import config_for
from ir.base.diag import Diagnostic, LadingError

SLACK = 1e-3
"""How far logits of two equal calls may be off, per unit of the larger of 1 and a tenth of the largest logit."""

HINT = "correct the settings in generation_config.json, or take the file away; and please report them"


@dataclass(frozen=True)
class Trial:
    """What is sampled.

    Attributes:
        prompt: ids to go on from.
        tokens: how many to sample.
        ends: ids that end generation.
        other: an id that does not.
    """

    prompt: Sequence[int]
    tokens: int
    ends: Sequence[int]
    other: int | None

    def actions(self) -> list[dict[str, Any]]:
        """For `run_model`, without overrides that concern the sampler."""
        stops = [*self.ends, *([] if self.other is None else [self.other])]
        sample = {"do": "sample", "prompt": list(self.prompt), "tokens": self.tokens}
        return [sample, {"do": "stops", "ids": stops}]


def trial(prompt: Sequence[int], tokens: int, ends: Collection[int], rows: int) -> Trial:
    """A trial with the ids of an end token and of the first token that is none."""
    other = next((token for token in range(rows) if token not in ends), None)
    return Trial(prompt, tokens, sorted(ends), other)


def require_sampled(run: ModelRun, where: str) -> None:
    """Raise B760 where sampling is what failed first."""
    if not run.loaded:
        return
    for action, result in zip(run.actions, run.results, strict=True):
        if result is not None and "error" not in result:
            continue
        if action["do"] in ("sample", "stops"):
            version = run.load.get("version", "")
            message = f"MNN {version}: sampling with the settings that would be written failed: {run.failure}"
            raise LadingError("B760", message, where=where, hint=HINT)
        return


def judge(found: Trial, sampler: Sampler, results: Sequence[Mapping[str, Any]], release: str) -> list[Diagnostic]:
    """What is wrong with the results of the two actions of a trial on a release."""
    sampled, stopped = results
    problems = [*_outside(found, sampler, sampled, release)]
    wanted = [True] * len(found.ends) + [False] * (found.other is not None)
    ids = [*found.ends, *([] if found.other is None else [found.other])]
    for token, stops, ends in zip(ids, stopped["stops"], wanted, strict=True):
        if stops != ends:
            what = "does not end generation at the id" if ends else "ends generation at the ordinary id"
            hint = "the model directory was not written; please report the checkpoint's tokenizer files"
            problems.append(Diagnostic("B764", f"MNN {release} {what} {token}", hint=hint))
    return problems


def _outside(found: Trial, sampler: Sampler, sampled: Mapping[str, Any], release: str) -> list[Diagnostic]:
    """The first token that transformers could not have chosen."""
    history = list(found.prompt)
    for token, logits in zip(sampled["ids"], sampled["logits"], strict=True):
        row = logits[-1]
        slack = SLACK * max(1.0, float(abs(row).max()) / 10)
        if out_of_reach(sampler.kept, row, history, found.ends, token, slack):
            message = f"MNN {release} sampled the token {token}, which the settings for generation exclude"
            return [Diagnostic("B765", message, hint=HINT)]
        history.append(token)
    return []


def try_release(
    folder: Path, version: str, interpreter: Path | str, found: Trial, sampler: Sampler
) -> list[Diagnostic]:
    """Run a trial on a release with the settings as they are in the folder.

    Raises:
        LadingError: B760 the runtime fails when it samples, B667 to B669 it fails before.
    """
    config = config_for(folder, version)
    run = run_model(config, found.actions(), overrides={}, interpreter=interpreter, timeout_s=600)
    require_sampled(run, str(config))
    return judge(found, sampler, [item for item in run.require(str(config)).results if item is not None], version)


__all__ = ["Trial", "judge", "require_sampled", "trial", "try_release"]
