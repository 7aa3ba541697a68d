"""What a run shows: the answer as it comes, in whole characters, and what it took."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from backends.mnn.run.chat import Answer

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal would act on."""


class Stream:
    """Writes bytes of an answer as text: a character that comes in pieces waits until it is whole.

    Args:
        out: where to.
        terminal: it is one, so control characters are left out.
    """

    def __init__(self, out: TextIO, *, terminal: bool) -> None:
        self._out = out
        self._terminal = terminal
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last = ""

    def __call__(self, data: bytes) -> None:
        """Write the next bytes."""
        self._write(self._decoder.decode(data))

    def close(self) -> None:
        """Write what was left of a character, and end the line."""
        self._write(self._decoder.decode(b"", final=True))
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._last = text[-1]
            self._out.write(_CONTROL.sub("", text) if self._terminal else text)
            self._out.flush()


def speed_line(answer: Answer) -> str:
    """Tokens and tokens per second of an answer."""
    read = f"{answer.prompt_tokens:,} tokens read" + _rate(answer.prefill_rate)
    made = f"{len(answer.ids):,} generated" + _rate(answer.decode_rate)
    return f"{read}; {made}" + ("" if answer.ended else "; the limit of tokens ended it")


def _rate(value: float | None) -> str:
    if value is None:
        return ""
    return f" at {value:,.0f}/s" if value >= 10 else f" at {value:.2g}/s"


def answer_data(messages: Sequence[Mapping[str, str]], answer: Answer) -> dict[str, Any]:
    """An answer as JSON-able data."""
    return {
        "messages": [dict(item) for item in messages],
        "answer": answer.text,
        "ids": list(answer.ids),
        "ended_by": "model" if answer.ended else "limit",
        "prompt_tokens": answer.prompt_tokens,
        "prefill_tokens_per_s": answer.prefill_rate,
        "decode_tokens_per_s": answer.decode_rate,
    }
