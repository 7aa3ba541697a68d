"""The long explanations of diagnostic codes: what causes each, what it looks like, and what to do.

They stand in the folder ``explanations`` beside the module that holds a table of codes, in one Markdown file for each
area, and are read when somebody asks. A section is a heading with the code, the cause, the message as a block of code,
and the remedy::

    ## F503

    Only the weights were copied, or the folder above the checkpoint is named.

    ```text
    error[F503]: ...
    ```

    Copy `config.json` from where the weights are from.

``...`` in a message stands for what differs from case to case. The test suite checks every message against what it saw
raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from ir.base.plugins import rows_of

FOLDER = "explanations"

_OWN = "ir.base"
_SECTION = re.compile(r"^## +(\S+)[ \t]*\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_PARTS = re.compile(r"(.*?)^```text\n(.*?)^```$(.*)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Explanation:
    """The long explanation of one code, in Markdown.

    Attributes:
        code: the code.
        cause: what usually brings it about.
        example: the message as it is printed; ``...`` for what differs from case to case.
        remedy: what to do.
    """

    code: str
    cause: str
    example: str
    remedy: str


def sections(text: str) -> Iterator[Explanation]:
    """The explanations of a file, in its order.

    Raises:
        ValueError: a section lacks a part.
    """
    for code, body in _SECTION.findall(text):
        parts = _PARTS.fullmatch(body)
        cause, example, remedy = (part.strip("\n") for part in parts.groups()) if parts else ("", "", "")
        if not (cause.strip() and example.strip() and remedy.strip()):
            raise ValueError(f"the explanation of {code} needs a cause, a message in a block ```text, and a remedy")
        yield Explanation(code, cause.strip(), example, remedy.strip())


@cache
def explanations(area: str) -> dict[str, Explanation]:
    """The explanations of all codes of an area, a letter such as ``F``, by code."""
    found = {}
    for package in _packages():
        file = resources.files(package) / FOLDER / f"{area}.md"
        if file.is_file():
            found.update({item.code: item for item in sections(file.read_text(encoding="utf-8"))})
    return found


def explanation(code: str) -> Explanation | None:
    """The explanation of a code; None for one of a plugin that has none."""
    return explanations(code[:1]).get(code)


def _packages() -> Iterator[str]:
    """Packages with a table of codes."""
    yield _OWN
    for _, rows, _ in rows_of("codes")():
        if isinstance(rows, str):
            yield rows.partition(":")[0].rpartition(".")[0]


__all__ = ["Explanation", "explanation", "explanations", "sections"]
