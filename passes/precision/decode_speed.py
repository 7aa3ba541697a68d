"""What a plan decodes at on its device: bytes read for each token, beside those of 4 bits in every weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ir.quant.storage import Storage
from passes.framework.context import PassContext
from passes.precision.measured.candidates import fastest_bytes, size_of_storage, streamed_bytes
from passes.precision.planned_weights import Weight, same_matrix
from passes.precision.storage_rules import Preferences

USUAL_BITS = 4
"""The width that every device has a kernel for."""
BLOCKS = (32, 64, 128, 0)
SAME, NEAR = 0.05, 0.25
"""Plans within the first share of a size are of that size; without one the nearest is, if it is larger by at most the
second share. A plan of more bits than 4 has none."""
SLOWER = 1.05
"""Plans that read this many times the bytes are said to be slower."""


class Reads(NamedTuple):
    """Bytes of a plan: in the file, and read for each token."""

    bytes: int
    streamed: int


def reads_of(weights: Sequence[Weight], storage: Mapping[str, Storage], tied: bool, wanted: Preferences) -> Reads:
    """The bytes of planned weights; of a tied pair the matrix counts once."""
    size = streamed = 0
    for weight in weights:
        stored = storage[weight.name]
        streamed += streamed_bytes(weight, stored, wanted.device)
        if not (tied and weight.role == "embedding"):
            size += size_of_storage(weight, stored, wanted.target)
    return Reads(size, streamed)


def usual_plans(weights: Sequence[Weight], wanted: Preferences) -> list[Reads]:
    """Plans of 4 bits in every weight, one for each block and form."""
    pair = same_matrix(weights)
    tied = pair is not None and USUAL_BITS in wanted.target.tied_widths
    found = []
    for block in BLOCKS:
        for symmetric in (False, True):
            storage = {}
            for weight in weights:
                rows = weight.role == "embedding" and not wanted.target.reads_rows(USUAL_BITS, weight.rows)
                bits = 8 if rows else USUAL_BITS
                storage[weight.name] = wanted.settled(weight, Storage(bits=bits, block=block, symmetric=symmetric))
            found.append(reads_of(weights, storage, tied, wanted))
    return found


def warn_if_slow(
    weights: Sequence[Weight], storage: Mapping[str, Storage], tied: bool, wanted: Preferences, ctx: PassContext
) -> None:
    """Say of a plan that it decodes slower than 4 bits in every weight would at its size; Q477."""
    plan = reads_of(weights, storage, tied, wanted)
    usual = sorted(usual_plans(weights, wanted), key=lambda reads: (abs(reads.bytes - plan.bytes), reads.streamed))
    same = [reads for reads in usual if abs(reads.bytes - plan.bytes) <= SAME * plan.bytes] or usual[:1]
    rival = min(same, key=lambda reads: reads.streamed)
    more = rival.bytes / plan.bytes - 1
    if not -SAME <= more <= NEAR or plan.streamed <= SLOWER * rival.streamed:
        return
    fastest = fastest_bytes(weights, wanted.target.widths, wanted.device)
    ctx.warn(
        "Q477",
        f"on {wanted.device.name} the plan reads {_mb(plan.streamed)} of weights for each token, and 4 bits in every weight "
        f"at about its size {_mb(rival.streamed)}: it decodes at {rival.streamed / plan.streamed:.2f} of that speed",
        hint=f"min-speed={0.98 * fastest / rival.streamed:.2f}x keeps to what {wanted.device.name} reads fast; "
        "device= names another device",
    )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.2f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"


__all__ = ["Reads", "reads_of", "usual_plans", "warn_if_slow"]
