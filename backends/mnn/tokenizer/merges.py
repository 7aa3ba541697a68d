"""Byte-pair merging over token ids, for questions about a vocabulary that its files do not answer.

Byte-level vocabularies spell each byte as one printable character (`BYTE_CHARS`), the alphabet of GPT-2. Many words
are merged side by side in arrays: a vocabulary of 128,000 words with 280,000 merges takes under half a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from backends.mnn.tokenizer.spec import TokenizerSpec


def _byte_chars() -> tuple[str, ...]:
    """The character that stands for each of the 256 bytes: itself where printable, else one from U+0100 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in kept else chr(next(others)) for byte in range(256))


BYTE_CHARS = _byte_chars()
CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}
_TO_CHARS = {byte: char for byte, char in enumerate(BYTE_CHARS) if ord(char) != byte}


def spell_bytes(data: bytes) -> str:
    """Bytes in the alphabet of byte-level vocabularies."""
    return data.decode("latin-1").translate(_TO_CHARS)


def unreachable_tokens(spec: TokenizerSpec) -> list[str]:
    """Tokens of two characters or more that merging the characters of their own text does not give."""
    last = final_merges(spec)
    own = {token.content for token in spec.added}
    return [text for text, index in spec.vocab.items() if last[index] < 0 and len(text) > 1 and text not in own]


_FINAL: WeakKeyDictionary[TokenizerSpec, np.ndarray] = WeakKeyDictionary()


def final_merges(spec: TokenizerSpec) -> np.ndarray:
    """int64, one entry per id of `spec.table_size`: rank of the merge that completes the token, -1 where none does.

    The merge is that by which the token's own characters, merged alone, become the token.
    """
    if spec not in _FINAL:
        last = np.full(spec.table_size, -1, np.int64)
        wanted = np.fromiter(spec.vocab.values(), np.int64, len(spec.vocab))
        table = _PairTable(spec.merges)
        for state in _rounds(spec, list(spec.vocab), table):
            pairs = state.starts[(state.counts == 2) & (state.best < _NEVER)]
            done = pairs[table.whole[state.rank[pairs]] == wanted[state.word[pairs]]]
            last[wanted[state.word[done]]] = state.rank[done]
        _FINAL[spec] = last
    return _FINAL[spec]


def merge_words(spec: TokenizerSpec, words: Sequence[str]) -> list[list[int]]:
    """Ids of each word, given in the characters of the vocabulary; a character without token gives -1."""
    found: list[list[int]] = [[] for _ in words]
    for state in _rounds(spec, words, _PairTable(spec.merges)):
        ended = np.repeat(state.best == _NEVER, state.counts)
        for word, index in zip(state.word[ended].tolist(), state.ids[ended].tolist(), strict=True):
            found[word].append(index)
    return found


_NEVER = np.int64(1) << 40


class _PairTable:
    """Rank and result of merges, looked up for many pairs at once."""

    def __init__(self, merges: np.ndarray) -> None:
        left, right, self.whole = merges.T.astype(np.int64)
        keys = left << 32 | right
        self.order = np.argsort(keys)
        self.keys = keys[self.order]

    def ranks(self, left: np.ndarray, right: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Rank of each pair, `_NEVER` where `inside` is false or no merge exists."""
        if not len(self.keys):
            return np.full(len(left), _NEVER)
        pair = left << 32 | right
        at = np.minimum(np.searchsorted(self.keys, pair), len(self.keys) - 1)
        return np.where((self.keys[at] == pair) & inside, self.order[at], _NEVER)


class _State(NamedTuple):
    """Words between two rounds, one after the other in flat arrays.

    `rank[i]` belongs to the pair of `ids[i]` and `ids[i + 1]`. Per word, in order: `starts`, `counts` of ids, and
    `best` rank, `_NEVER` for a word that is finished and will be dropped.
    """

    ids: np.ndarray
    word: np.ndarray
    rank: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    best: np.ndarray


def _rounds(spec: TokenizerSpec, words: Sequence[str], table: _PairTable) -> Iterator[_State]:
    """The state before each round, in which every unfinished word makes its best merge."""
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ids = np.fromiter(map(spec.vocab.get, "".join(words), repeat(-1)), np.int64, int(lengths.sum()))
    word = np.repeat(np.arange(len(words)), lengths)
    rank = table.ranks(ids[:-1], ids[1:], word[:-1] == word[1:])
    while len(ids):
        starts = np.flatnonzero(np.concatenate(([True], word[1:] != word[:-1])))
        counts = np.diff(np.append(starts, len(ids)))
        best = np.minimum.reduceat(np.append(rank, _NEVER), starts)
        state = _State(ids, word, rank, starts, counts, best)
        yield state
        ids, word, rank = _merge_round(state, table)


def _merge_round(state: _State, table: _PairTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One best merge, the leftmost of equals, in each word that has one; the other words are dropped."""
    ids, word, rank = state.ids, state.word, state.rank
    hits = np.flatnonzero((rank == np.repeat(state.best, state.counts)[:-1]) & (rank < _NEVER))
    at = hits[np.concatenate(([True], word[hits[1:]] != word[hits[:-1]]))] if len(hits) else hits
    ids[at] = table.whole[rank[at]]
    keep = np.repeat(state.best < _NEVER, state.counts)
    keep[at + 1] = False
    touched = np.zeros(len(ids), bool)
    touched[at] = True
    rank = np.append(rank, _NEVER)[keep][:-1]
    ids, word, touched = ids[keep], word[keep], touched[keep]
    stale = np.flatnonzero(touched[:-1] | touched[1:])
    rank[stale] = table.ranks(ids[stale], ids[stale + 1], word[stale] == word[stale + 1])
    return ids, word, rank
