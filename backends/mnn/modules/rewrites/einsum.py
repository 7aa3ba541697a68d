"""Einsum by its equation: diagonals and sums of each operand, then products of two operands after another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backends.mnn.modules.build import Build, type_of
from backends.mnn.modules.rewrites.sizes import as_value, size
from backends.mnn.modules.rewrites.types import Table
from backends.mnn.modules.table.row import FLOAT, MOST_AXES
from ir.base.types import I64
from ir.graph.graph import Node, Value

_FREE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class _Term:
    """An operand with a letter for each axis."""

    value: Value
    letters: str


def einsum(node: Node, b: Build) -> Sequence[Value] | None:
    """Letters that no one else has are summed, letters of both operands are those of a product of matrices."""
    ranks = [given_type.rank if (given_type := type_of(value)) is not None else None for value in node.inputs]
    split = _letters(str(b.attr("equation")), ranks)
    if split is None:
        return None
    given, out = split
    stretched = _stretched(node, given)
    if stretched is None:
        return None
    terms = [_single(b, _Term(value, letters)) for value, letters in zip(stretched, given, strict=True)]
    found = terms[0]
    for index, term in enumerate(terms[1:], 1):
        kept = set(out).union(*(later.letters for later in terms[index + 1 :]))
        found = _product(b, found, term, kept)
    found = _summed(b, found, set(out))
    return [_ordered(b, found, out).value]


def _letters(equation: str, ranks: Sequence[int | None]) -> tuple[list[str], str] | None:
    """Letters of the operands and of the result; dots become letters of their own. None for what cannot be read."""
    left, arrow, right = re.sub(r"\s", "", equation).partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks) or None in ranks:
        return None
    used = set(equation)
    free = [letter for letter in _FREE if letter not in used]
    dots = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if rank is not None]
    widest = max([count for term, count in zip(terms, dots, strict=True) if "..." in term], default=0)
    if min(dots) < 0 or widest > len(free):
        return None
    lead = "".join(free[:widest])
    given = [
        term.replace("...", lead[widest - count :] if count else "") for term, count in zip(terms, dots, strict=True)
    ]
    if any(len(term) != rank for term, rank in zip(given, ranks, strict=True)):
        return None
    counts = re.sub(r"[^A-Za-z]", "", left)
    implied = lead + "".join(sorted(letter for letter in set(counts) if counts.count(letter) == 1))
    out = right.replace("...", lead) if arrow else implied
    return (given, out) if len(set(out)) == len(out) <= MOST_AXES else None


def _stretched(node: Node, given: Sequence[str]) -> list[Value] | None:
    """The operands; None where axes of one letter may have to be stretched, which products of matrices do not do."""
    sizes: dict[str, object] = {}
    for value, letters in zip(node.inputs, given, strict=True):
        shape = value.shape if value is not None else None
        if value is None or shape is None:
            return None
        for letter, length in zip(letters, shape, strict=True):
            if sizes.setdefault(letter, length) != length and 1 in (sizes[letter], length):
                return None
    return [value for value in node.inputs if value is not None]


def _single(b: Build, term: _Term) -> _Term:
    """Without letters that are met twice: those of the diagonal remain."""
    for letter in dict.fromkeys(term.letters):
        while term.letters.count(letter) > 1:
            first = term.letters.index(letter)
            second = term.letters.index(letter, first + 1)
            term = _diagonal(b, term, first, second)
    return term


def _diagonal(b: Build, term: _Term, first: int, second: int) -> _Term:
    rank = len(term.letters)
    order = (*(place for place in range(rank) if place not in (first, second)), first, second)
    turned = b.add("Transpose", term.value, perm=order)
    length = size(b, term.value, first)
    shape = b.add("Slice", b.add("Shape", turned), b.ints(0), b.ints(rank - 1))
    if isinstance(length, int):
        places = b.const(np.arange(length).reshape(length, 1), "places")
    else:
        count = b.add("Range", b.scalar(0, I64), b.reshape(length, []), b.scalar(1, I64))
        places = b.reshape(count, [-1, 1])
    whole = b.add("Expand", places, b.add("Concat", shape, b.ints(1), axis=0))
    taken = b.add("Squeeze", b.add("GatherElements", turned, whole, axis=rank - 1), b.ints(-1))
    return _Term(taken, "".join(term.letters[place] for place in order[:-1]))


def _summed(b: Build, term: _Term, kept: set[str]) -> _Term:
    gone = [place for place, letter in enumerate(term.letters) if letter not in kept]
    if not gone:
        return term
    value = b.add("ReduceSum", term.value, b.ints(*gone), keepdims=0)
    return _Term(value, "".join(letter for letter in term.letters if letter in kept))


def _ordered(b: Build, term: _Term, letters: str) -> _Term:
    order = tuple(term.letters.index(letter) for letter in letters)
    if order == tuple(range(len(order))):
        return term
    return _Term(b.add("Transpose", term.value, perm=order), letters)


def _product(b: Build, x: _Term, y: _Term, kept: set[str]) -> _Term:
    """The product of two terms, summed over what nobody keeps."""
    x, y = _summed(b, x, kept | set(y.letters)), _summed(b, y, kept | set(x.letters))
    both = [letter for letter in x.letters if letter in y.letters]
    batch = "".join(letter for letter in both if letter in kept)
    inner = "".join(letter for letter in both if letter not in kept)
    rows = "".join(letter for letter in x.letters if letter not in both)
    columns = "".join(letter for letter in y.letters if letter not in both)
    if not inner or x.value.dtype not in FLOAT:
        return _summed(b, _each(b, x, y), kept)
    left, right = _ordered(b, x, batch + rows + inner), _ordered(b, y, batch + inner + columns)
    product = b.add("MatMul", _grouped(b, left, [batch, rows, inner]), _grouped(b, right, [batch, inner, columns]))
    lengths = [_length(b, x if letter in x.letters else y, letter) for letter in batch + rows + columns]
    return _Term(_shaped(b, product, lengths), batch + rows + columns)


def _each(b: Build, x: _Term, y: _Term) -> _Term:
    """Products of elements, with axes of 1 where a term has no such letter."""
    letters = x.letters + "".join(letter for letter in y.letters if letter not in x.letters)
    wide = []
    for term in (x, y):
        found = _ordered(b, term, "".join(letter for letter in letters if letter in term.letters))
        missing = [place for place, letter in enumerate(letters) if letter not in term.letters]
        wide.append(b.add("Unsqueeze", found.value, b.ints(*missing)) if missing else found.value)
    return _Term(b.add("Mul", *wide), letters)


def _length(b: Build, term: _Term, letter: str) -> int | Value:
    return size(b, term.value, term.letters.index(letter))


def _grouped(b: Build, term: _Term, groups: Sequence[str]) -> Value:
    """Three axes, one for each group of letters."""
    lengths: list[int | Value] = []
    for group in groups:
        each = [_length(b, term, letter) for letter in group]
        known = [length for length in each if isinstance(length, int)]
        if len(known) == len(each):
            lengths.append(int(np.prod(known, dtype=np.int64)))
        elif len(each) == 1:
            lengths.append(each[0])
        else:
            parts = b.add("Concat", *(as_value(b, length) for length in each), axis=0)
            lengths.append(b.add("ReduceProd", parts, keepdims=1))
    return _shaped(b, term.value, lengths)


def _shaped(b: Build, value: Value, lengths: Sequence[int | Value]) -> Value:
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) == len(lengths):
        return b.reshape(value, known)
    return b.add("Reshape", value, b.add("Concat", *(as_value(b, length) for length in lengths), axis=0))


REWRITES: Table = {"Einsum": (einsum,)}
"""Rewrites by operator."""
