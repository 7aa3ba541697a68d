"""The stages of a tokenizer in MNN's terms: which normalizers, word cutters and decoders say the same.

Each stage of tokenizer.json is turned into `Part`s, the vocabulary of the binary file (see `tokenizer_mtok`). Where
MNN lacks a kind, an equal is put together from those it has; where only rare texts would come out otherwise, the
difference is added to `Plan.reasons`; anything else is an error. Behaviour of the parts is that of MNN 3.5.0 to
3.6.1, transformers/llm/engine/src/tokenizer/tokenizer.cpp; that of Hugging Face is the tokenizers library's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends.mnn.tokenizer.characters.charsmap import charsmap_rules
from backends.mnn.tokenizer.characters.normal_forms import NFC_GAPS, compose_rules, decompose_table
from backends.mnn.tokenizer.characters.steps import marked_steps, steps
from backends.mnn.tokenizer.characters.translate import quote, translate
from backends.mnn.tokenizer.spec import TokenizerSpec
from backends.mnn.tokenizer.whole_words import CLOSE, DROPPED, JOINED, MARKED, OPEN, WholeWords, whole_words
from ir.base.diag import LadingError

META = "\u2581"
# Cuts in front of each space that follows something else; as many spaces as stand together stay with what follows.
_RUN_SPLIT = " *[^ ]+| +"
# Cuts in front of every space.
_SPACE_SPLIT = " ?[^ ]+| "
_PUNCTUATION = r"!-/:-@\[-`{-~\p{P}"
TRIM = r"\A +| +\z"
"""How SentencePiece's removal of spaces at the ends of a text is written in a tokenizer.json."""
TRIMMED = "tabs and line breaks at the beginning of a text are removed with the spaces"
WIDE_EDGES = "U+0085, U+2028 and U+2029 are no whitespace"
LIST_DECODE = "decoding a whole list of ids"


@dataclass(frozen=True, slots=True)
class Part:
    """One stage: `kind` and its fields in the order of the file format."""

    kind: str
    fields: tuple[Any, ...] = ()
    children: tuple[Part, ...] = ()


FIRST_SPACE = (
    "text that follows an added token gets a leading space, as does the beginning of a text",
    "text that does not follow an added token gets no leading space, as in chats",
)
"""How the scheme "first" is resolved: a space everywhere, or nowhere."""


@dataclass
class Plan:
    """What is written before and after the vocabulary, and how it differs from tokenizer.json.

    `always_prefix` tells how the scheme "first" (a space before the text, but not after an added token) was resolved,
    None where it does not occur. `words` goes into the vocabulary of the binary form.
    """

    normalizer: Part = field(default_factory=lambda: Part("none"))
    pre_tokenizer: Part = field(default_factory=lambda: Part("none"))
    decoder: Part = field(default_factory=lambda: Part("fuse"))
    reasons: list[str] = field(default_factory=list)
    always_prefix: bool | None = None
    words: WholeWords | None = None

    @property
    def normalizers(self) -> tuple[Part, ...]:
        """The normalizers, each for itself."""
        return self.normalizer.children or (self.normalizer,)

    @property
    def cutters(self) -> tuple[Part, ...]:
        """The pre-tokenizers, each for itself."""
        return self.pre_tokenizer.children or (self.pre_tokenizer,)

    @property
    def decoders(self) -> tuple[Part, ...]:
        """The decoders, each for itself."""
        return self.decoder.children or (self.decoder,)

    def say(self, *reasons: str) -> None:
        """Add reasons that are not yet listed."""
        self.reasons += [reason for reason in dict.fromkeys(reasons) if reason and reason not in self.reasons]


def make_plan(spec: TokenizerSpec, strip_allowed: bool = False) -> Plan:
    """The stages for the binary form.

    Args:
        strip_allowed: use the Strip normalizer, which MNN reads from 3.6.0 on; otherwise it is left out, with a
            reason.

    Raises:
        LadingError: B643, B644, B645 or B646 for a stage that cannot be expressed.
    """
    plan = Plan()
    maker = _Maker(spec, plan, strip_allowed)
    normalizers = maker.stages(spec.normalizer, "normalizers")
    cutters = maker.stages(spec.pre_tokenizer, "pretokenizers")
    if not maker.sentencepiece(normalizers, cutters):
        parts = [part for item in normalizers for part in maker.normalizer(item)]
        pieces = maker.marked(parts, cutters)
        plan.normalizer = _sequence(parts)
        plan.pre_tokenizer = _sequence(pieces or [part for item in cutters for part in maker.cutter(item)])
    plan.decoder = maker.decoder(spec.decoder)
    return plan


def _sequence(parts: Iterable[Part]) -> Part:
    """One part for several; MNN 3.5.0 crashes on a `none` inside a sequence, so there is never one."""
    parts = tuple(part for part in parts if part.kind != "none")
    if not parts:
        return Part("none")
    return parts[0] if len(parts) == 1 else Part("sequence", children=parts)


class _Maker:
    """Turns one stage object after the other into parts, and keeps notes in the plan."""

    def __init__(self, spec: TokenizerSpec, plan: Plan, strip_allowed: bool) -> None:
        self.spec = spec
        self.plan = plan
        self.strip_allowed = strip_allowed
        self.where = f"{spec.folder}/tokenizer.json"

    def stages(self, stage: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
        """The stages of nested sequences in one list."""
        if stage is None:
            return []
        if stage["type"] != "Sequence":
            return [stage]
        return [inner for child in stage.get(key) or () for inner in self.stages(child, key)]

    def text(self, item: Mapping[str, Any], key: str) -> str:
        """A field that must be text, and not empty."""
        value = item.get(key)
        if not value:
            raise LadingError("B641", f"{item['type']} has no {key}", where=self.where)
        return value

    def pattern(self, item: Mapping[str, Any]) -> tuple[str | None, str | None]:
        """The literal text or the regular expression of a stage; the other is None."""
        value = item.get("pattern")
        if value is None:
            raise LadingError("B641", f"{item['type']} has no pattern", where=self.where)
        return value.get("String"), value.get("Regex")

    # -- normalizers --------------------------------------------------------------------------------------------------

    def normalizer(self, item: Mapping[str, Any]) -> list[Part]:
        kind = item.get("type")
        maker: Callable[[Mapping[str, Any]], list[Part]] | None = {
            "NFC": self.composed,
            "NFKC": self.composed,
            "Prepend": lambda item: [Part("prepend", (self.text(item, "prepend"),))],
            "Replace": self.replace,
            "Lowercase": self.lowercase,
            "Strip": self.strip,
            "BertNormalizer": self.bert,
            "Precompiled": self.precompiled,
            "StripAccents": self.accents,
        }.get(str(kind))
        if maker is None:
            raise LadingError("B643", f"normalizer of type {kind!r}", where=self.where)
        return maker(item)

    def composed(self, item: Mapping[str, Any]) -> list[Part]:
        self.plan.say(NFC_GAPS)
        return [Part("replace", rule) for rule in compose_rules(item["type"])]

    def replace(self, item: Mapping[str, Any]) -> list[Part]:
        content = item.get("content", "")
        literal, regex = self.pattern(item)
        if literal:
            return [Part("replace", (literal, content))]
        if regex == " {2,}" and content in (" ", META):
            # A pass of "two spaces to one" halves each run; 17 passes bring any run below 100,000 to a single space.
            if content == META and not self.cuts_at_meta():
                raise LadingError("B643", "runs of spaces are replaced by another character", where=self.where)
            return [Part("replace", ("  ", " "))] * 17
        if regex == TRIM and content == "":
            self.plan.say(TRIMMED)
            return self.strip({"strip_left": True, "strip_right": True})
        raise LadingError("B643", f"replacement by the regular expression {regex!r}", where=self.where)

    def cuts_at_meta(self) -> bool:
        return any(stage.get("type") == "Metaspace" for stage in self.stages(self.spec.pre_tokenizer, "pretokenizers"))

    def lowercase(self, _item: Mapping[str, Any]) -> list[Part]:
        """MNN's table maps one character to one; the only letter that becomes two is İ."""
        return [Part("replace", ("\u0130", "i\u0307")), Part("bert", (0, 0, 0, 1))]

    def accents(self, _item: Mapping[str, Any]) -> list[Part]:
        return [Part("bert_table", (0, 0, 1, 0, decompose_table()))]

    def strip(self, item: Mapping[str, Any]) -> list[Part]:
        """Only the left side: MNN's search for whitespace at the right end begins behind the last byte."""
        left, right = bool(item.get("strip_left", True)), bool(item.get("strip_right", True))
        if right:
            self.plan.say("whitespace at the end of a text is kept")
        if not left:
            return []
        if not self.strip_allowed:
            self.plan.say("whitespace at the beginning of a text is kept; removing it needs MNN 3.6.0")
            return []
        self.plan.say(WIDE_EDGES)
        return [Part("strip", (1, 0))]

    def bert(self, item: Mapping[str, Any]) -> list[Part]:
        clean, chinese = item.get("clean_text", True), item.get("handle_chinese_chars", True)
        lower, accents = item.get("lowercase", True), item.get("strip_accents")
        accents = lower if accents is None else accents
        flags = (int(clean), int(chinese), int(accents), int(lower))
        parts = [Part("replace", rule) for rule in _format_rules()] if clean else []
        if lower:
            parts.append(self.lowercase(item)[0])
        if accents:
            self.plan.say("spacing marks, such as vowel signs of Indic scripts, are removed with the accents")
        return [*parts, Part("bert_table", (*flags, decompose_table())) if accents else Part("bert", flags)]

    def precompiled(self, item: Mapping[str, Any]) -> list[Part]:
        rules, problems = charsmap_rules(item.get("precompiled_charsmap"), self.where)
        self.plan.say(*problems)
        return [Part("replace", rule) for rule in rules]

    # -- pre-tokenizers -----------------------------------------------------------------------------------------------

    def cutter(self, item: Mapping[str, Any]) -> list[Part]:
        kind = item.get("type")
        maker: Callable[[Mapping[str, Any]], list[Part]] | None = {
            "ByteLevel": self.byte_level,
            "Split": self.split,
            "Metaspace": self.metaspace,
            "Digits": self.digits,
            "Punctuation": self.punctuation,
            "Whitespace": self.words,
            "WhitespaceSplit": lambda _: [self.cut("\\s+", "Removed")],
            "CharDelimiterSplit": lambda item: [self.cut(quote(self.text(item, "delimiter")), "Removed")],
            "BertPreTokenizer": self.bert_words,
        }.get(str(kind))
        if maker is None:
            raise LadingError("B644", f"pre-tokenizer of type {kind!r}", where=self.where)
        return maker(item)

    def cut(self, pattern: str, behavior: str, invert: bool = False) -> Part:
        text, reasons = translate(pattern)
        self.plan.say(*reasons)
        return Part("split", (text, int(invert), {"Isolated": 0, "Removed": 1}[behavior]))

    def cuts(self, pattern: str) -> list[Part]:
        """A cut into matches and what lies between them, in as many steps as it takes."""
        found = steps(pattern)
        if found is None:
            return [self.cut(pattern, "Isolated")]
        self.plan.say(*found[1])
        return [Part("split", (text, 0, 0)) for text in found[0]]

    def byte_level(self, item: Mapping[str, Any]) -> list[Part]:
        parts = [Part("metaspace", (" ", 1))] if item.get("add_prefix_space", True) else []
        regex = item.get("use_regex", True)
        if regex:
            self.plan.say(*translate(GPT2_PATTERN)[1])
        return [*parts, Part("byte_level", (int(regex),))]

    def split(self, item: Mapping[str, Any]) -> list[Part]:
        behavior = item.get("behavior", "Isolated")
        literal, regex = self.pattern(item)
        pattern = regex if literal is None else quote(literal)
        assert pattern is not None
        if behavior == "Isolated" and not item.get("invert"):
            return self.cuts(pattern)
        if behavior == "Removed" or behavior == "Isolated":
            return [self.cut(pattern, behavior, bool(item.get("invert")))]
        one = _one_character(pattern)
        if one is None or item.get("invert"):
            raise LadingError(
                "B644", f"pre-tokenizer Split of behavior {behavior!r} with {pattern!r}", where=self.where
            )
        return [self.cut_joined(one, behavior)]

    def cut_joined(self, characters: str, behavior: str) -> Part:
        """A cut at single characters that stay with a neighbour, as a pattern whose matches are the pieces."""
        inside, outside = f"[{characters}]", f"[^{characters}]"
        pieces = {
            "MergedWithPrevious": f"{outside}*{inside}|{outside}+",
            "MergedWithNext": f"{inside}?{outside}+|{inside}",
            "Contiguous": f"{inside}+|{outside}+",
        }
        if behavior not in pieces:
            raise LadingError("B644", f"pre-tokenizer behavior {behavior!r}", where=self.where)
        return self.cut(pieces[behavior], "Isolated")

    def digits(self, item: Mapping[str, Any]) -> list[Part]:
        return [self.cut("\\p{N}" if item.get("individual_digits") else "\\p{N}+", "Isolated")]

    def punctuation(self, item: Mapping[str, Any]) -> list[Part]:
        behavior = item.get("behavior", "Isolated")
        if behavior in ("Isolated", "Removed"):
            return [self.cut(f"[{_PUNCTUATION}]", behavior)]
        return [self.cut_joined(_PUNCTUATION, behavior)]

    def marked(self, normalizers: list[Part], cutters: list[Mapping[str, Any]]) -> list[Part]:
        """With ignore_merges: pre-tokenizers that take words found whole, after adding to the normalizers.

        Empty where this does not apply, so that the usual way is taken.
        """
        if not self.spec.options.get("ignore_merges") or not cutters or cutters[-1].get("type") != "ByteLevel":
            return []
        regex = cutters[-1].get("use_regex", True)
        pattern = GPT2_PATTERN if len(cutters) == 1 and regex else None
        if len(cutters) == 2 and not regex and cutters[0].get("type") == "Split":
            isolated = cutters[0].get("behavior") == "Isolated" and not cutters[0].get("invert")
            pattern = self.pattern(cutters[0])[1] if isolated else None
        prefixed = cutters[-1].get("add_prefix_space", True)
        marks = frozenset((OPEN, CLOSE))
        found = marked_steps(pattern, MARKED, marks) if pattern and not prefixed else None
        words = whole_words(self.spec, found[2]) if found is not None else None
        if words is None or found is None:
            return []
        self.plan.words = words
        self.plan.say(*found[1], DROPPED, JOINED if found[2] else "")
        normalizers += [Part("replace", rule) for rule in words.rules]
        return [*(Part("split", (text, 0, 0)) for text in found[0]), Part("byte_level", (0,))]

    def words(self, _item: Mapping[str, Any]) -> list[Part]:
        self.plan.say("zero-width joiners and circled letters do not count as letters")
        return [self.cut("\\w+|[^\\w\\s]+", "Removed", invert=True)]

    def bert_words(self, _item: Mapping[str, Any]) -> list[Part]:
        self.plan.say(WIDE_EDGES)
        return [Part("bert")]

    def metaspace(self, item: Mapping[str, Any]) -> list[Part]:
        """Metaspace behind another stage; alone, `sentencepiece` handles it exactly."""
        replacement = item.get("replacement", META)
        parts = [Part("metaspace", (" ", 1))] if self.prefixed(item) else []
        if item.get("split", True):
            parts.append(self.cut(_SPACE_SPLIT, "Isolated"))
        self.plan.say(f"text that itself contains {replacement!r} is cut elsewhere")
        return [*parts, Part("metaspace", (replacement, 0))]

    def prefixed(self, item: Mapping[str, Any]) -> bool:
        """Whether a space goes before each stretch of text between added tokens.

        MNN cannot tell the first stretch from those that follow an added token, so the scheme "first" becomes what
        is right for the texts this tokenizer will see: with a chat template, prompts begin with an added token.
        """
        scheme = item.get("prepend_scheme", "always" if item.get("add_prefix_space", True) else "never")
        if scheme != "first":
            return scheme == "always"
        chat = self.spec.chat_template or ""
        marked = "bos_token" in chat or any(token.content in chat for token in self.spec.added)
        self.plan.always_prefix = not marked
        if self.plan.always_prefix:
            self.plan.say(FIRST_SPACE[0])
        else:
            self.plan.say(FIRST_SPACE[1])
        return self.plan.always_prefix

    # -- spaces as U+2581 ---------------------------------------------------------------------------------------------

    def sentencepiece(self, normalizers: list[Mapping[str, Any]], cutters: list[Mapping[str, Any]]) -> bool:
        """Plan the SentencePiece forms: spaces become U+2581 by a normalizer or by a lone Metaspace.

        MNN merges in time quadratic in the length of a stretch, so text is cut wherever no merge can cross. To cut
        with its matcher, which sees U+2581 as any other symbol, the text is kept in plain spaces until after the
        cut: U+2581 in the text becomes a space first (it means the same from here on).
        """
        lone = len(cutters) == 1 and cutters[0].get("type") == "Metaspace"
        replaced = bool(normalizers) and _is_space_to_meta(normalizers[-1])
        useless = replaced and all(_cuts_only_at_spaces(item) for item in cutters)
        if not useless and not (lone and cutters[0].get("replacement", META) == META):
            return False
        head = normalizers[:-1] if replaced else normalizers
        parts: list[Part] = []
        for item in head:
            for part in self.normalizer(item):
                parts.append(Part("prepend", (" ",)) if part == Part("prepend", (META,)) else part)
        parts.append(Part("replace", (META, " ")))
        self.plan.normalizer = _sequence(parts)
        cuts = []
        if lone and self.prefixed(cutters[0]):
            cuts.append(Part("metaspace", (" ", 1)))
        if lone and cutters[0].get("split", True):
            cuts.append(self.cut(_SPACE_SPLIT, "Isolated"))
        elif not _crosses_words(self.spec):
            cuts.append(self.cut(_RUN_SPLIT, "Isolated"))
        self.plan.pre_tokenizer = _sequence([*cuts, Part("metaspace", (META, 0))])
        return True

    # -- decoders -----------------------------------------------------------------------------------------------------

    def decoder(self, item: Mapping[str, Any] | None) -> Part:
        if item is None:
            self.plan.say(f"{LIST_DECODE} puts no spaces between tokens")
            return Part("fuse")
        parts: list[Part] = []
        fused = False
        for child in self.stages(item, "decoders"):
            parts += self.decode_step(child, fused)
            fused = fused or child.get("type") in ("Fuse", "ByteLevel", "WordPiece")
        if any(child.kind == "byte_fallback" for child in parts):
            self.check_byte_names()
        return _sequence(parts) if parts else Part("fuse")

    def decode_step(self, item: Mapping[str, Any], fused: bool) -> list[Part]:
        kind = item.get("type")
        if kind in ("ByteLevel", "ByteFallback", "Fuse"):
            return [Part({"ByteLevel": "byte_level", "ByteFallback": "byte_fallback", "Fuse": "fuse"}[kind])]
        if kind == "WordPiece":
            self.plan.say("decoding a single WordPiece token puts a space in front of it")
            return [Part("wordpiece", (item.get("prefix", "##"), int(item.get("cleanup", True))))]
        if kind == "Replace" and (literal := self.pattern(item)[0]):
            return [Part("replace", (literal, item.get("content", "")))]
        if kind == "Strip":
            start, stop, content = int(item.get("start", 0)), int(item.get("stop", 0)), self.text(item, "content")
            if not fused and (start or stop):
                self.plan.say(f"{LIST_DECODE} strips {content!r} off the ends of the text, not of each token")
            return [Part("strip", (content, int(i < start), int(i < stop))) for i in range(max(start, stop))]
        if kind == "Metaspace":
            return self.decode_metaspace(item)
        raise LadingError("B646", f"decoder of type {kind!r}", where=self.where)

    def decode_metaspace(self, item: Mapping[str, Any]) -> list[Part]:
        """The library drops every U+2581 of the first token; MNN's own kind would drop one space."""
        mark = item.get("replacement", META)
        scheme = item.get("prepend_scheme", "always" if item.get("add_prefix_space", True) else "never")
        if scheme == "never":
            return [Part("metaspace", (mark, 0))]
        runs = max((len(text) - len(text.lstrip(mark)) for text in self.spec.vocab if text.startswith(mark)), default=1)
        return [*[Part("strip", (mark, 1, 0))] * runs, Part("metaspace", (mark, 0))]

    def check_byte_names(self) -> None:
        odd = [text for text in self.spec.vocab if text.startswith("<0x") and not _is_byte_name(text)]
        if odd:
            self.plan.say(f"decoding takes the token {odd[0]!r} for a byte")


GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _format_rules() -> list[tuple[str, str]]:
    """Format characters and separators that MNN's cleaning keeps and the library's removes or turns into spaces."""
    import unicodedata

    low = [chr(code) for code in (*range(0xAD, 0x10000), *range(0x110BD, 0x110CE), *range(0x13430, 0x13440))]
    low += [chr(code) for code in (*range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0001, 0xE0080))]
    removed = [(char, "") for char in low if unicodedata.category(char) == "Cf"]
    return [*removed, ("\u2028", " "), ("\u2029", " ")]


def _is_byte_name(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _is_space_to_meta(item: Mapping[str, Any]) -> bool:
    return item.get("type") == "Replace" and item.get("pattern") == {"String": " "} and item.get("content") == META


def _cuts_only_at_spaces(item: Mapping[str, Any]) -> bool:
    """A cut at spaces does nothing once every space has become U+2581."""
    return item.get("type") == "Split" and item.get("pattern") == {"String": " "} and not item.get("invert")


def _one_character(pattern: str) -> str | None:
    """The inside of a set for a pattern that matches exactly one character, else None."""
    if len(pattern) == 1 and pattern not in ".^$|?*+()[]{}\\":
        return pattern
    if len(pattern) == 2 and pattern[0] == "\\" and not pattern[1].isdigit():
        return pattern
    if pattern.startswith("\\p{") and pattern.endswith("}") and pattern.count("}") == 1:
        return pattern
    if pattern[:1] == "[" and pattern[-1:] == "]" and pattern[1:2] != "^" and "[" not in pattern[1:]:
        return pattern[1:-1] if pattern.count("]") == 1 else None
    return None


def _crosses_words(spec: TokenizerSpec) -> bool:
    """Whether some merge (or Unigram piece) joins a U+2581 to something before it other than U+2581."""
    if spec.kind != "bpe":
        return any(META in text.lstrip(META) for text in spec.vocab)
    size = max(spec.vocab.values()) + 1
    starts, ends = np.zeros(size, bool), np.zeros(size, bool)
    for text, index in spec.vocab.items():
        if META in text:
            starts[index], ends[index] = text.startswith(META), text.endswith(META)
    return bool(np.any(starts[spec.merges[:, 1]] & ~ends[spec.merges[:, 0]]))
