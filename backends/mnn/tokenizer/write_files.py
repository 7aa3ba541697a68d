"""Write the tokenizer files in a process of their own, beside everything else the compiler does.

A vocabulary of 150,000 tokens is half a second of pure Python work, which would slow the threads that fill the weight
file down. The child also counts, when asked, how often the nearest text form gives other ids than the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontends.text.tokenizer_child import TokenizerWork
from ir.base.diag import Diagnostic, LadingError
from ir.base.paused_gc import paused_collection

if TYPE_CHECKING:
    from backends.mnn.tokenizer.spec import TokenizerSpec

MAX_LINES = 500
"""Lines of the user's text that are compared."""

SAMPLES = (
    "def f(x): return x ** 2 + 10\n",
    "for i in range(100):\n    print(i, end='')\n",
    "x = {'a': 1, \"b\": [1, 2, 3]}",
    "The quick brown fox jumps over 13 lazy dogs.",
    "It's 9:45 p.m. on 2024-02-29; I've paid $1,234.56.",
    "你好,世界!今天是2024年5月1日。",
    "深度学习 deep learning 模型的维数是896",
    "日本語のテキストと한국어 텍스트",
    "naïve café — déjà vu … “quotes”",
    "Привет, мир! Γειά σου Κόσμε",
    "emoji 😀👩‍👩‍👧‍👦🇨🇳 and math ∑∫√",
    "   leading and   inner   spaces   ",
    "\t\ttabs\n\n\nlines\r\n",
    "https://example.org/path?query=1&b=2#frag",
    "CamelCaseIdentifier snake_case_identifier SCREAMING_CASE",
    "a\u0301 e\u0308 (combining)",
)
"""Strings of many kinds that are always compared."""


@dataclass(frozen=True)
class End:
    """A token that ends generation: its id, its text (None where the tokenizer has none), and the files that name it."""

    id: int
    text: str | None
    sources: Sequence[str]


@dataclass(frozen=True)
class TokenizerFiles:
    """What was written.

    Attributes:
        kind: kind of tokenizer.
        exact: name of the exact form and the reasons for which it may still differ; empty when not written.
        text: the same for the nearest text form.
        differing, compared: sample strings that the text form encodes otherwise, of how many; zeros when not compared.
        template: ``jinja`` object of ``llm_config.json``; empty without a chat template.
        raw: how text outside chats is encoded otherwise in every form.
        ends: what ends generation.
        warnings: what the user should know of the checkpoint's tokenizer.
        samples: test strings, each with the ids that the original gives it; none where nothing is compared.
    """

    kind: str
    exact: str
    exact_reasons: Sequence[str]
    text: str
    text_reasons: Sequence[str]
    differing: int
    compared: int
    template: Mapping[str, str]
    raw: Sequence[str] = ()
    ends: Sequence[End] = ()
    warnings: Sequence[Diagnostic] = ()
    samples: Sequence[tuple[str, Sequence[int]]] = ()


@dataclass(frozen=True)
class TokenizerRequest:
    """What to write.

    Attributes:
        source: checkpoint folder.
        out: folder to write to.
        exact: name of the exact form's file; empty for none.
        oldest: oldest release that reads it.
        text: name of the text form's file; empty for none.
        compare: count differences of the text form from the original.
        lines: file whose lines are compared too; empty for none.
        model: folder of the model where it may be another one: its end tokens count too; empty for none.
    """

    source: str
    out: str
    exact: str
    oldest: str
    text: str
    compare: bool = False
    lines: str = ""
    model: str = ""


class TokenizerJob:
    """A running child; use it as a context manager, so that it does not outlive a failure."""

    def __init__(self, request: TokenizerRequest) -> None:
        """Begin to write; LadingError U981, F650 as `TokenizerWork`."""
        lines = _size(request.lines) if request.lines else 0
        source = Path(request.source)
        # Where ids are compared, texts are encoded later on.
        self._work = TokenizerWork(f"{__name__}:serve", asdict(request), source, lines, last=not request.compare)

    def __enter__(self) -> TokenizerJob:
        return self

    def __exit__(self, *error: object) -> None:
        self._work.__exit__(*error)

    def result(self) -> TokenizerFiles:
        """Wait for the files.

        Raises:
            LadingError: whatever the child found wrong with the tokenizer; F650 the child did not survive it.
            RuntimeError: the child failed in a way that nobody foresaw.
        """
        answer = self._work.result()
        answer["ends"] = [End(**item) for item in answer["ends"]]
        answer["warnings"] = [Diagnostic(**item) for item in answer["warnings"]]
        return TokenizerFiles(**answer)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side: write the files of a request."""
    with paused_collection():
        return asdict(write_files(TokenizerRequest(**request)))


def write_files(request: TokenizerRequest) -> TokenizerFiles:
    """Write the forms that were asked for.

    Raises:
        LadingError: B640 to B659, see `backends.mnn.tokenizer.forms`; B620 when a file cannot be written; Q435, F650
            when the original tokenizer that the text form is compared with cannot be run.
    """
    from backends.mnn.tokenizer.forms import encode_mtok, encode_text, inexact, jinja_template, raw_reasons
    from backends.mnn.tokenizer.spec import load_tokenizer

    spec = load_tokenizer(Path(request.source), model=Path(request.model) if request.model else None)
    out = Path(request.out)
    exact_reasons, text_reasons = [], []
    if request.exact:
        _write(out / request.exact, encode_mtok(spec, request.oldest))
        exact_reasons = inexact(spec, "mtok", request.oldest)
    differing = compared = 0
    samples: list[tuple[str, list[int]]] = []
    if request.text:
        _write(out / request.text, encode_text(spec)[1])
        text_reasons = inexact(spec, "text")
    if request.compare:
        differing, compared, samples = _compare(spec, request)
    template = jinja_template(spec)
    found = {"chat_template": template, "eos": spec.eos} if template else {}
    return TokenizerFiles(
        spec.kind,
        request.exact,
        exact_reasons,
        request.text,
        text_reasons,
        differing,
        compared,
        {key: value for key, value in found.items() if value is not None},
        raw_reasons(spec, request.oldest),
        [End(token, spec.text_of(token), sources) for token, sources in spec.end_sources.items()],
        warnings(spec),
        samples,
    )


def warnings(spec: TokenizerSpec) -> list[Diagnostic]:
    """What the user should know of a tokenizer: tokens that are not what the files say, and how generation ends."""
    found = [("B766", note, "") for note in _shortened(spec.notes)]
    hint = "tokenizer.json is followed; correct the one that is wrong"
    found += [("B786", f"{note} (tokenizer_config.json)", hint) for note in spec.unlike]
    found += [("B763", problem, "") for problem in spec.end_problems]
    for token in spec.stop_ids:
        if spec.text_of(token) is None:
            named = ", ".join(spec.end_sources[token])
            found.append(("B763", f"the id {token} that ends generation ({named}) is no token of the tokenizer", ""))
    if not spec.stop_ids:
        hint = "name the end token: eos_token_id in generation_config.json, or eos_token in tokenizer_config.json"
        found.append(("B762", "no token ends generation, so it goes on until the limit on its length", hint))
    return [Diagnostic(code, message, spec.folder, hint, "warning") for code, message, hint in found]


def _shortened(notes: Sequence[str], most: int = 4) -> Sequence[str]:
    return notes if len(notes) <= most else [*notes[:most], f"and {len(notes) - most} more tokens like these"]


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise LadingError("B620", f"cannot write {path.name}: {error.strerror}", where=str(path)) from error


def _test_strings(lines: str) -> list[str]:
    """Strings to compare tokenizers on: `SAMPLES`, and the first lines of a file where one is named."""
    from frontends.text.documents import plain_text

    strings = [*SAMPLES]
    if lines:
        text = plain_text(Path(lines)).splitlines()
        strings += [line for line in text if line.strip()][:MAX_LINES]
    return strings


def _compare(spec: TokenizerSpec, request: TokenizerRequest) -> tuple[int, int, list[tuple[str, list[int]]]]:
    """How many strings the text form encodes otherwise, of how many, and what the original makes of each."""
    from backends.mnn.tokenizer.forms import text_tokenizer
    from frontends.text.tokenizer import encoded, load_in_process

    original = load_in_process(Path(request.source))
    strings = _test_strings(request.lines)
    samples = [(string, encoded(original, string, True, request.source)) for string in strings]
    if not request.text:
        return 0, 0, samples
    emulated = text_tokenizer(spec)
    # What the chat template writes itself is not written a second time, so the prefix is the exported one.
    prefix = list(spec.encode_prefix_ids)
    wanted = [prefix + encoded(original, string, False, request.source) for string in strings]
    differing = sum(ids != emulated.encode(string) for ids, string in zip(wanted, strings, strict=True))
    return differing, len(strings), samples
