"""Byte-pair merging over token ids, for questions about a vocabulary that its files do not answer.

Byte-level vocabularies spell each byte as one printable character (`BYTE_CHARS`), the alphabet of GPT-2.
"""

from __future__ import annotations

from itertools import pairwise, repeat

import numpy as np

from backends.mnn.tokenizer_spec import TokenizerSpec


def _byte_chars() -> tuple[str, ...]:
    """The character that stands for each of the 256 bytes: itself where printable, else one from U+0100 on."""
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in kept else chr(next(others)) for byte in range(256))


BYTE_CHARS = _byte_chars()
CHAR_BYTES = {char: byte for byte, char in enumerate(BYTE_CHARS)}


def spell_bytes(data: bytes) -> str:
    """Bytes in the alphabet of byte-level vocabularies."""
    return data.decode("latin-1").translate(_TO_CHARS)


_TO_CHARS = {byte: char for byte, char in enumerate(BYTE_CHARS) if ord(char) != byte}


def merge_text(spec: TokenizerSpec, text: str, ranks: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Ids of one word, its characters spelled as in the vocabulary; characters without a token are dropped.

    Args:
        ranks: `rank_table(spec)`.
    """
    ids = [spec.vocab[char] for char in text if char in spec.vocab]
    while len(ids) > 1:
        found = [(ranks.get(pair), at) for at, pair in enumerate(pairwise(ids))]
        best = min(((rank[0], at, rank[1]) for rank, at in found if rank is not None), default=None)
        if best is None:
            break
        _, at, whole = best
        ids[at : at + 2] = [whole]
    return ids


def rank_table(spec: TokenizerSpec) -> dict[tuple[int, int], tuple[int, int]]:
    """(left id, right id) -> (rank, id of the merged token)."""
    return {(left, right): (rank, whole) for rank, (left, right, whole) in enumerate(spec.merges.tolist())}


def unreachable_tokens(spec: TokenizerSpec) -> list[str]:
    """Tokens that merging the characters of their own text does not give."""
    last = final_merges(spec, max(spec.vocab.values()) + 1)
    own = {token.content for token in spec.added}
    return [text for text, index in spec.vocab.items() if last[index] < 0 and len(text) > 1 and text not in own]


def final_merges(spec: TokenizerSpec, size: int) -> np.ndarray:
    """int64 `[size]`: rank of the merge that completes each token from its own characters, -1 where none does.

    All words of the vocabulary are merged side by side: in each round every word makes its best merge. Costs half a
    second for 128,000 tokens.
    """
    last = np.full(size, -1, np.int64)
    if not len(spec.merges):
        return last
    names = list(spec.vocab)
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    wanted = np.fromiter(spec.vocab.values(), np.int64, len(names))
    ids = np.fromiter(map(spec.vocab.get, "".join(names), repeat(-1)), np.int64, int(lengths.sum()))
    word = np.repeat(np.arange(len(names)), lengths)
    table = _PairTable(spec.merges)
    rank = table.ranks(ids[:-1], ids[1:], word[:-1] == word[1:])
    while len(ids):
        starts = np.flatnonzero(np.concatenate(([True], word[1:] != word[:-1])))
        best = np.minimum.reduceat(np.append(rank, _NEVER), starts)
        counts = np.diff(np.append(starts, len(ids)))
        pairs = starts[(counts == 2) & (best < _NEVER)]
        whole = pairs[table.whole[rank[pairs]] == wanted[word[pairs]]]
        last[wanted[word[whole]]] = rank[whole]
        ids, word, rank = _merge_round(ids, word, rank, best, counts, table)
    return last


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
        pair = left << 32 | right
        at = np.minimum(np.searchsorted(self.keys, pair), len(self.keys) - 1)
        return np.where((self.keys[at] == pair) & inside, self.order[at], _NEVER)


def _merge_round(
    ids: np.ndarray, word: np.ndarray, rank: np.ndarray, best: np.ndarray, counts: np.ndarray, table: _PairTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One best merge, the leftmost of equals, in each word that has one; the other words are dropped.

    `rank[i]` belongs to the pair of `ids[i]` and `ids[i + 1]`.
    """
    hits = np.flatnonzero((rank == np.repeat(best, counts)[:-1]) & (rank < _NEVER))
    at = hits[np.concatenate(([True], word[hits[1:]] != word[hits[:-1]]))] if len(hits) else hits
    ids[at] = table.whole[rank[at]]
    keep = np.repeat(best < _NEVER, counts)
    keep[at + 1] = False
    touched = np.zeros(len(ids), bool)
    touched[at] = True
    rank = np.append(rank, _NEVER)[keep][:-1]
    ids, word, touched = ids[keep], word[keep], touched[keep]
    stale = np.flatnonzero(touched[:-1] | touched[1:])
    rank[stale] = table.ranks(ids[stale], ids[stale + 1], word[stale] == word[stale + 1])
    return ids, word, rank
