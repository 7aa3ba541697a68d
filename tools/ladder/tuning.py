"""Runtime settings of a rung: tried on the installed runtime, and those that cost nothing written into its folder.

What was found lies beside what is known of the rung, with the digest of the contract that it left, so that a rung that is
as it was left is not tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir.base.diag import LadingError
from ir.base.whole_files import sha256_of
from tools.ladder.rungs import Rule, recommend
from tools.matrix.rows import read_kept, write_kept

if TYPE_CHECKING:
    from backends.contract import Choice, Contract
    from backends.mnn.target.run_settings import Tried
    from backends.mnn.verify.measure import FloatReference
    from backends.mnn.verify.run_settings import Outcome, Trial

RECOMMENDED, NONE = "recommended", "none"
"""Words for the rungs whose settings are tried: the one that is recommended, and none."""

VERDICTS = {
    "usual": "as shipped",
    "better": "better",
    "equal": "no gain",
    "slower": "slower",
    "costs": "costs KL",
    "unsure": "KL unsure",
    "failed": "failed",
}
"""What is said of a trial, by its verdict."""


def asked(names: Sequence[str], rungs: Sequence[Mapping[str, Any]], rule: Rule) -> list[str]:
    """The rungs whose settings are tried, of those that were measured."""
    ready = [rung["name"] for rung in rungs if rung["status"] == "ok"]
    wanted = [recommend(rungs, rule)["rung"] if name == RECOMMENDED else name for name in names if name != NONE]
    return [name for name in dict.fromkeys(wanted) if name in ready]


def tune(
    folder: Path,
    state: Path,
    measured_of: Mapping[str, Any],
    reference: Callable[[], FloatReference],
    *,
    fresh: bool,
    say: Callable[[str], None],
    timeout_s: float,
) -> tuple[dict[str, Any], bool]:
    """What trying settings on a compiled rung found, as JSON-able data, and whether its configuration changed.

    Args:
        folder: of the rung.
        state: file of what was found.
        measured_of: what decides it, the rung aside.
        reference: gives the float model's logits, where something is measured.
        fresh: forget what is in `state`.
        say: told what happens.
        timeout_s: seconds of one run.

    Raises:
        LadingError: B667 to B669 the runtime fails with the settings that are shipped; C807 the contract cannot be
            written.
    """
    from backends.contract import CONTRACT_FILE, read
    from backends.mnn.target.run_settings import spelled
    from backends.mnn.verify.run_settings import try_settings
    from backends.mnn.write.chosen_settings import write_chosen

    kept = None if fresh else read_kept(state, {"measured_of": measured_of})
    if kept is not None and kept["contract"] == sha256_of(folder / CONTRACT_FILE):
        return {**kept["found"], "reused": True}, False
    started = time.perf_counter()
    contract = read(folder)
    outcome = try_settings(
        folder,
        reference(),
        candidates(contract),
        shipped=contract.runtime.settings,
        say=say,
        timeout_s=timeout_s,
    )
    write_chosen(
        folder, outcome.chosen, [_choice(contract, trial, outcome) for trial in outcome.trials if trial.kl is not None]
    )
    found = {
        "trials": [trial.as_dict() for trial in outcome.trials],
        "uses": [use.as_dict() for use in outcome.uses],
        "chosen": spelled(outcome.chosen).split(",") if outcome.chosen else [],
        "error": None,
        "seconds": round(time.perf_counter() - started, 1),
    }
    contents = {"measured_of": measured_of, "contract": sha256_of(folder / CONTRACT_FILE), "found": found}
    write_kept(state, contents)
    return {**found, "reused": False}, bool(outcome.chosen)


def candidates(contract: Contract) -> tuple[Tried, ...]:
    """What may be tried on a compiled model: what its releases read, and mapped weights where they map all of it."""
    from backends.mnn.target.releases import PROFILES
    from backends.mnn.target.run_settings import MAPPED, tried

    releases = contract.target.releases
    rows = tried(releases, contract.runtime.settings.get("memory", "low"))
    mappable = PROFILES[releases[0]].mapped_widths
    if all(item.storage.bits in mappable for item in contract.weights):
        return rows
    return tuple(row for row in rows if row.key != MAPPED)


def _choice(contract: Contract, trial: Trial, outcome: Outcome) -> Choice:
    from backends.contract import Choice
    from backends.mnn.contract import run_settings

    assert trial.kl is not None and trial.top1 is not None
    written = {key: value for key, value in trial.settings.items() if key != "tmp_path"}
    return Choice(
        settings=run_settings({**contract.runtime.settings, **trial.settings}),
        kl=trial.kl,
        kl_decode=trial.kl_decode,
        top1=trial.top1,
        recommended=written == dict(outcome.chosen),
        note=f"{trial.meaning or 'as shipped'}: {VERDICTS[trial.verdict]}",
    )


def failure(error: LadingError) -> dict[str, Any]:
    """The data of a rung on which nothing could be tried."""
    said = error.diagnostics[0].as_dict()
    return {"trials": [], "uses": [], "chosen": [], "error": said, "seconds": 0.0, "reused": False}


__all__ = ["NONE", "RECOMMENDED", "VERDICTS", "asked", "candidates", "failure", "tune"]
