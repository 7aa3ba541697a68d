"""How a tokenizer was written and how often the nearest text form differs from the original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.contract import Tokenizer
    from backends.mnn.profiles import Target
    from backends.mnn.tokenizer import TokenizerSpec

MAX_LINES = 500
"""Lines of the user's text that are tried."""

SAMPLES = (
    "def f(x): return x ** 2 + 10\n", "for i in range(100):\n    print(i, end='')\n", "x = {'a': 1, \"b\": [1, 2, 3]}",
    "The quick brown fox jumps over 13 lazy dogs.", "It's 9:45 p.m. on 2024-02-29; I've paid $1,234.56.",
    "你好,世界!今天是2024年5月1日。", "深度学习 deep learning 模型的维数是896", "日本語のテキストと한국어 텍스트", "naïve café — déjà vu … “quotes”",
    "Привет, мир! Γειά σου Κόσμε", "emoji 😀👩‍👩‍👧‍👦🇨🇳 and math ∑∫√", "   leading and   inner   spaces   ", "\t\ttabs\n\n\nlines\r\n",
    "https://example.org/path?query=1&b=2#frag", "CamelCaseIdentifier snake_case_identifier SCREAMING_CASE", "a\u0301 e\u0308 (combining)",
)  # fmt: skip
"""Strings of many kinds that are always tried."""


def describe_tokenizer(folder: Path, tokenizer: TokenizerSpec, target: Target, text: Path | None) -> Tokenizer:
    """The contract's part on the tokenizer.

    For releases without the exact form, the text form is run on sample strings and lines of the user's text (in Python,
    as those releases do it) and compared with the original tokenizer.
    """
    import backends.contract as c
    from backends.mnn import configs
    from backends.mnn.tokenizer import inexact

    new = tuple(release.version for release in target.releases if release.mtok)
    old = tuple(release.version for release in target.releases if not release.mtok)
    files, differences = [], []
    if new:
        files.append(c.TokenizerFile(file=configs.TOKENIZER, releases=new))
        reasons = inexact(tokenizer, "mtok", new[0])
        if reasons:
            differences.append(c.Inexact(releases=new, differing=0, of=len(SAMPLES), reasons=tuple(reasons)))
    if old:
        files.append(c.TokenizerFile(file=configs.TOKENIZER_TEXT, releases=old))
        differing, total = _count_differences(folder, tokenizer, text)
        reasons = inexact(tokenizer, "text")
        if reasons or differing:
            differences.append(c.Inexact(releases=old, differing=differing, of=total, reasons=tuple(reasons)))
    return c.Tokenizer(form=tokenizer.kind, files=tuple(files), inexact=tuple(differences))


def _count_differences(folder: Path, tokenizer: TokenizerSpec, text: Path | None) -> tuple[int, int]:
    """Sample strings whose ids differ, and how many there are."""
    from tokenizers import Tokenizer

    from backends.mnn.tokenizer import text_tokenizer

    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    emulated = text_tokenizer(tokenizer)
    strings = [*SAMPLES]
    if text is not None:
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        strings += [line for line in lines if line.strip()][:MAX_LINES]
    differing = sum(original.encode(string).ids != emulated.encode(string) for string in strings)
    return differing, len(strings)
