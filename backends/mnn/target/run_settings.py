"""Runtime settings that trade speed, memory and numbers, by release: what may be tried on a finished model, as data.

The values of `TRIED` are measured by ``lading ladder`` one at a time beside the settings that a model ships. The ways of
`USES` pay off in some uses of a model alone, so they are measured by themselves and never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ir.base.diag import LadingError, suggest

_CONFIG = "transformers/llm/engine/src/llmconfig.hpp"
_LLM = "transformers/llm/engine/src/llm.cpp: setRuntimeHint"
_ATTENTION = "source/backend/cpu/CPUAttention.cpp: onResize"
_INT8 = "source/backend/cpu/compute/ConvInt8TiledExecutor.cpp"


@dataclass(frozen=True)
class Tried:
    """One value of a setting that may be better than the runtime's own.

    Attributes:
        key, value: as they stand in ``config.json``.
        usual: what the runtime takes where the key is absent.
        meaning: what it does, for people.
        since: the first release that reads it so.
        evidence: how that is known.
        low_memory: it only acts where codes stay packed.
    """

    key: str
    value: Any
    usual: Any
    meaning: str
    since: str
    evidence: str
    low_memory: bool = False

    @property
    def name(self) -> str:
        """The setting as people write it."""
        return f"{self.key}={_spelled(self.value)}"


@dataclass(frozen=True)
class Use:
    """A way of using a model that saves time in some uses alone.

    Attributes:
        name: what it is called.
        meaning: what it does, for people.
        since: the first release that has it.
        evidence: how that is known.
        unmeasured: why it is not measured; empty where it is.
    """

    name: str
    meaning: str
    since: str
    evidence: str
    unmeasured: str = ""


MAPPED = "use_mmap"
"""The key of mapped weights, which other keys go with (`backends.mnn.write.mapped`)."""

TRIED = (
    Tried("dynamic_option", 2, 0, "activations rounded by block of the weight", "3.4.0",
          f"{_LLM}, {_INT8}; probe: logits, tests of simulate-activations", low_memory=True),
    Tried("attention_mode", 0, 8, "scores of a whole prompt at once, without flash attention", "3.4.0",
          f"{_LLM}, {_ATTENTION}; probe: logits"),
    Tried("attention_mode", 9, 8, "keys kept in 8 bits", "3.4.0", f"{_LLM}, {_ATTENTION}; probe: logits"),
    Tried("attention_mode", 10, 8, "keys and values kept in 8 bits", "3.4.0", f"{_LLM}, {_ATTENTION}; probe: logits"),
    Tried("attention_mode", 13, 8, "keys kept in 4 bits", "3.5.0", f"{_ATTENTION}: TQ4; not measured before"),
    Tried("attention_mode", 14, 8, "keys and values kept in 4 bits", "3.5.0", f"{_ATTENTION}: TQ4; not measured before"),
    Tried("kvcache_mmap", True, False, "keys and values in a mapped file", "3.4.0", f"{_LLM}; probe: logits"),
    Tried(MAPPED, True, False, "weights mapped by later loads", "3.4.0", f"{_LLM}; probe: logits of three loads",
          low_memory=True),
)  # fmt: skip
"""Values beside those that the runtime takes by itself."""

USES = (
    Use("kept history", "a conversation goes on behind keys and values that are still there (reuse_kv)", "3.4.0",
        f"{_CONFIG}: reuse_kv"),
    Use("lookahead", "several tokens that followed the same words before are tried at once (speculative_type)", "3.4.0",
        "transformers/llm/engine/src/speculative_decoding/lookahead.cpp"),
    Use("prefix cache", "keys and values of a prefix kept on disk between runs", "3.4.0",
        "transformers/llm/engine/src/llm.cpp: setPrefixCacheFile",
        "the call that names its file is not in MNN's Python binding"),
)  # fmt: skip
"""Ways of use, in the order that they are told in."""


def tried(releases: Iterable[str], memory: str) -> tuple[Tried, ...]:
    """The values that every one of some releases reads, for a model that ships a memory setting.

    Mapped weights are left out where there are several releases, each of which lays them out in its own way.
    """
    releases = tuple(releases)
    oldest = min(map(_key, releases))
    rows = [item for item in TRIED if _key(item.since) <= oldest and (memory == "low" or not item.low_memory)]
    return tuple(item for item in rows if item.key != MAPPED or len(releases) == 1)


def read_settings(text: str, releases: Iterable[str]) -> dict[str, Any]:
    """Settings such as ``attention_mode=0,kvcache_mmap=true`` for some releases.

    Raises:
        LadingError: B795 no such text, a key that is not here, or a value that a release does not read.
    """
    releases = tuple(releases)
    keys = sorted({item.key for item in TRIED} - {MAPPED})
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, written = part.partition("=")
        if not equals:
            hint = "write --settings attention_mode=0,kvcache_mmap=true"
            raise LadingError("B795", f"{part!r} is no setting", where=f"--settings {text}", hint=hint)
        if key not in keys:
            hint = "use --mmap" if key == MAPPED else suggest(key, keys) or f"known: {', '.join(keys)}"
            raise LadingError("B795", f"there is no runtime setting {key!r} to choose", f"--settings {text}", hint)
        values = known(key, releases)
        value = next((value for value in values if _spelled(value) == written.lower()), None)
        if value is None:
            message = f"{key} cannot be {written!r} for MNN {min(releases, key=_key)}"
            raise LadingError("B795", message, f"--settings {text}", f"known: {', '.join(map(_spelled, values))}")
        found[key] = value
    return found


def spelled(settings: Mapping[str, Any]) -> str:
    """Settings as `read_settings` reads them."""
    return ",".join(f"{key}={_spelled(value)}" for key, value in settings.items())


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def known(key: str, releases: Iterable[str]) -> tuple[Any, ...]:
    """The values that a key may be given for some releases, the usual one first; none for a key that is not here."""
    oldest = min(map(_key, releases))
    rows = [item for item in TRIED if item.key == key]
    return tuple(
        {item.usual: None for item in rows} | {item.value: None for item in rows if _key(item.since) <= oldest}
    )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


__all__ = ["MAPPED", "TRIED", "USES", "Tried", "Use", "known", "read_settings", "spelled", "tried"]
