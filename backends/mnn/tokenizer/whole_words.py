"""Words that are tokens as a whole although no merge reaches them: the effect of `ignore_merges` in MNN.

With `ignore_merges` the tokenizers library looks a word up in the vocabulary before it merges anything. Vocabularies
converted from rank tables hold tokens that only this look-up finds (588 of 128,000 in Llama 3, mostly Vietnamese,
Turkish and Russian words). MNN's BPE has no such look-up, and a merge of the parts would act inside longer words too.

What it can do is this. Normalization marks each stretch of text that is such a word from its leading space to its
last letter, with a control character before and one behind, unless a letter follows. A first alternative of the word
pattern takes the marked stretch whole. Its parts merge as ever, the marks taking no part; then merges of the lowest
ranks swallow mark, parts and mark from left to right. The last of them gives a second entry of the vocabulary with
the token's own id. That entry sorts before the token's text, as the mark's character sorts before that of a space,
so decoding, which knows the last entry of an id, is not changed. No id of an intermediate step can be left over,
because between two marks there is always the whole of one such word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from backends.mnn.tokenizer.characters.steps import is_one_word
from backends.mnn.tokenizer.merges import BYTE_CHARS, CHAR_BYTES, merge_words, unreachable_tokens
from backends.mnn.tokenizer.spec import TokenizerSpec

OPEN, CLOSE = 0x1F, 0x1E
MARKED = "\\x1F[^\\x1E]+\\x1E"
DROPPED = "the control characters U+001E and U+001F are left out"

JOINED = "tokens that no merge reaches are put together from parts where a capital follows"
"""Where words are cut at capitals, a letter that follows does not say that the word goes on."""


@dataclass(frozen=True)
class WholeWords:
    """What the binary form gets for the words in `texts`: replacements, vocabulary entries and merges.

    `entries` are (text in the byte alphabet, id), ids from the table size on for intermediate steps. `merges` are
    (left id, right id) in order of rank, all after those of the vocabulary.
    """

    texts: tuple[str, ...]
    rules: tuple[tuple[bytes, bytes], ...]
    entries: tuple[tuple[str, int], ...]
    merges: tuple[tuple[int, int], ...]


def whole_words(spec: TokenizerSpec, cased: bool = False) -> WholeWords | None:
    """The words that can be found whole: a space and letters; None if there are none.

    Args:
        cased: words are cut at capitals, so that a token with capitals inside is never found whole.
    """
    opened, closed = BYTE_CHARS[OPEN], BYTE_CHARS[CLOSE]
    if opened not in spec.vocab or closed not in spec.vocab:
        return None
    if any(len(text) > 1 and (opened in text or closed in text) for text in spec.vocab):
        return None
    texts = {spelled: text for spelled in unreachable_tokens(spec) if (text := _word(spelled)) is not None}
    if cased:
        texts = {spelled: text for spelled, text in texts.items() if is_one_word(text[1:])}
    parts = dict(zip(texts, merge_words(spec, list(texts)), strict=True))
    parts = {spelled: ids for spelled, ids in parts.items() if -1 not in ids}
    if not parts:
        return None
    entries, merges = _chains(spec, parts)
    words = sorted((texts[spelled] for spelled in parts), key=len, reverse=True)
    return WholeWords(tuple(words), tuple(_rules(words)), entries, merges)


def _word(spelled: str) -> str | None:
    """The text of a token that is one space and letters, else None."""
    if spelled[0] != "\u0120" or not all(char in CHAR_BYTES for char in spelled):
        return None
    try:
        text = bytes(CHAR_BYTES[char] for char in spelled).decode()
    except UnicodeDecodeError:
        return None
    return text if text[1:].isalpha() else None


def _chains(
    spec: TokenizerSpec, parts: dict[str, list[int]]
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]]:
    """Entries and merges that turn mark, parts, mark into the token, sharing steps between words."""
    names = {index: text for text, index in spec.vocab.items()}
    steps: dict[str, int] = {}
    merges: dict[tuple[int, int], None] = {}
    entries: list[tuple[str, int]] = []
    for spelled, ids in parts.items():
        text, at = BYTE_CHARS[OPEN], spec.vocab[BYTE_CHARS[OPEN]]
        for part in ids:
            text += names[part]
            merges[at, part] = None
            at = steps.setdefault(text, spec.table_size + len(steps))
        merges[at, spec.vocab[BYTE_CHARS[CLOSE]]] = None
        entries.append((text + BYTE_CHARS[CLOSE], spec.vocab[spelled]))
    return (*steps.items(), *entries), tuple(merges)


def _rules(words: list[str]) -> Iterable[tuple[bytes, bytes]]:
    """Replacements: clear the marks, close each word, reopen those that go on, open the closed ones."""
    opened, closed = bytes((OPEN,)), bytes((CLOSE,))
    yield opened, b""
    yield closed, b""
    data = [word.encode() for word in words]
    for word in data:
        yield word, word + closed
    for head in _letter_heads({ord(word[-1]) >> 7 for word in words}):
        yield closed + head, head
    for word in data:
        yield word + closed, opened + word + closed


def _letter_heads(scripts: set[int]) -> list[bytes]:
    """First bytes of UTF-8 letters: whole blocks where a block holds letters alone, else single characters.

    Characters beyond U+FFFF, and letters of mixed three-byte blocks far from `scripts` (code points over 128), are
    left out: a word of another script does not follow without a space.
    """
    blocks: dict[bytes, dict[bytes, bool]] = {}
    for code in (*range(0x80, 0xD800), *range(0xF900, 0x10000)):
        category = unicodedata.category(chr(code))
        if category not in ("Cn", "Co"):
            data = chr(code).encode()
            blocks.setdefault(data[:-1], {})[data] = category[0] == "L"
    heads = [bytes((code,)) for code in range(128) if chr(code).isalpha()]
    for head, members in blocks.items():
        if all(members.values()):
            heads.append(head)
        elif len(head) == 1 or any(ord(data.decode()) >> 7 in scripts for data in members):
            heads += [data for data, letter in members.items() if letter]
    return heads
