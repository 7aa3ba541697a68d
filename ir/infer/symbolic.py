"""Arithmetic on symbolic dimensions: which computed extents are provably the same.

An extent is an ``int``, a named `Dim`, or a *pending* `Dim` (its name starts with ``?``) that stands for an expression
nobody has named yet. Expressions are polynomials with integer coefficients over named dimensions and opaque terms;
equal polynomials share one pending dimension, so ``S*14`` computed twice is one extent, while two unknown extents
never are. `SymbolTable.bind` gives a pending dimension its name, either one already recorded or a fresh one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from math import gcd, prod
from typing import overload

from ir.base.types import Dim

Extent = int | Dim
Monomial = tuple[str, ...]
Polynomial = dict[Monomial, int]


class SymbolTable:
    """Names, ranges and meanings of the dimensions of one graph."""

    def __init__(self, taken: Callable[[str], bool] = lambda name: False, named: int = 0) -> None:
        """`taken` tells whether a name is already used by a dimension of the graph; the first `named` names are."""
        self._taken = taken
        self._dims: dict[str, Dim] = {}
        self._meaning: dict[str, Polynomial] = {}
        self._interned: dict[Hashable, Dim] = {}
        self._bound: dict[str, Dim] = {}
        self._free: set[str] = set()
        self._serial = 0
        self.named = named

    # ---- names ----

    def fresh(self, low: int = 0, high: int | None = None) -> Dim:
        """A pending dimension equal to no other."""
        self._serial += 1
        return Dim(f"?{self._serial}", low, high)

    @overload
    def resolve(self, extent: Dim) -> Dim: ...

    @overload
    def resolve(self, extent: Extent) -> Extent: ...

    def resolve(self, extent: Extent) -> Extent:
        """The extent under its final name, when it has got one."""
        if type(extent) is Dim and extent.name[:1] == "?":
            return self._bound.get(extent.name, extent)
        return extent

    def declare(self, dim: Dim) -> None:
        """Make a dimension a term of its own: what the caller of the graph chooses, such as a sequence length."""
        self._dims[dim.name] = dim
        self._meaning[dim.name] = {(dim.name,): 1}
        self._free.add(dim.name)

    def bind(self, pending: Dim, named: Dim | None = None) -> Dim:
        """Name a pending dimension: as `named`, or freshly."""
        if named is None:
            named = Dim(self._fresh_name(), pending.low, pending.high, pending.multiple_of)
        self._bound[pending.name] = named
        self._dims.setdefault(pending.name, pending)
        self._meaning.setdefault(named.name, self._own_meaning(pending))
        return named

    def fits(self, pending: Dim, named: Dim) -> bool:
        """True when a recorded name may stand for a pending dimension.

        A name that already stands for another expression may not. A declared dimension may, when the expression is
        made of declared dimensions only and can be equal to it (a caller's ``total`` for ``past + new``).
        """
        known = self._meaning.get(named.name)
        meaning = self._own_meaning(pending)
        if known is None or known == meaning:
            return True
        if named.name not in self._free or any(name[:1] == "?" for term in meaning for name in term):
            return False
        difference = dict(meaning)
        difference[(named.name,)] = difference.get((named.name,), 0) - 1
        signs = {factor > 0 for factor in difference.values() if factor}
        return len(signs) == 2

    def _own_meaning(self, pending: Dim) -> Polynomial:
        return self._meaning.get(pending.name, {(pending.name,): 1})

    def _fresh_name(self) -> str:
        while True:
            self.named += 1
            name = f"d{self.named}"
            if not self._taken(name):
                return name

    # ---- arithmetic ----

    def add(self, a: Extent, b: Extent) -> Extent:
        """a + b."""
        if type(a) is int and type(b) is int:
            return a + b
        total = dict(self._polynomial(a))
        for term, factor in self._polynomial(b).items():
            total[term] = total.get(term, 0) + factor
        return self._extent(total)

    def subtract(self, a: Extent, b: Extent) -> Extent:
        """a - b."""
        if type(a) is int and type(b) is int:
            return a - b
        total = dict(self._polynomial(a))
        for term, factor in self._polynomial(b).items():
            total[term] = total.get(term, 0) - factor
        return self._extent(total)

    def multiply(self, a: Extent, b: Extent) -> Extent:
        """a * b."""
        if type(a) is int and type(b) is int:
            return a * b
        total: Polynomial = {}
        for left, factor in self._polynomial(a).items():
            for right, other in self._polynomial(b).items():
                term = tuple(sorted(left + right))
                total[term] = total.get(term, 0) + factor * other
        return self._extent(total)

    def product(self, extents: Iterable[Extent]) -> Extent:
        """Product of any number of extents."""
        total: Extent = 1
        for extent in extents:
            total = self.multiply(total, extent)
        return total

    def quotient(self, over: Iterable[Extent], under: Iterable[Extent]) -> Extent:
        """Product of `over` divided by the product of `under`, which is known to divide it.

        Raises ArithmeticError when both are numbers and the division leaves a rest.
        """
        above, below = _cancel([self.resolve(e) for e in over], [self.resolve(e) for e in under])
        number, divisor = prod(e for e in above if type(e) is int), prod(e for e in below if type(e) is int)
        above, below = [e for e in above if type(e) is Dim], [e for e in below if type(e) is Dim]
        if not above and not below:
            if divisor == 0 or number % divisor:
                raise ArithmeticError(f"{number} is not a multiple of {divisor}")
            return number // divisor
        top, bottom = self.product([number, *above]), self.product([divisor, *below])
        exact = self._divide(self._polynomial(top), self._polynomial(bottom))
        return self._extent(exact) if exact is not None else self.opaque("quotient", top, bottom)

    def floordiv(self, a: Extent, b: Extent) -> Extent:
        """a // b for non-negative a and positive b."""
        if type(a) is int and type(b) is int and b != 0:
            return a // b
        exact = self._divide(self._polynomial(a), self._polynomial(b))
        return self._extent(exact) if exact is not None else self.opaque("floordiv", a, b)

    def opaque(self, kind: str, *extents: Extent, low: int = 0, high: int | None = None) -> Dim:
        """A pending dimension for ``kind(extents)``: the same for the same arguments, unknown otherwise."""
        key = (kind, *(self._key(extent) for extent in extents))
        found = self._interned.get(key)
        if found is None:
            found = self._interned[key] = self.fresh(low, high)
        return self.resolve(found)

    def broadcast(self, a: Extent, b: Extent) -> Extent:
        """Extent of two broadcast axes.

        Raises ArithmeticError when they are numbers that do not fit.
        """
        if a == b:
            return a
        if isinstance(a, int):
            if a == 1:
                return b
            if type(b) is int:
                if b == 1:
                    return a
                raise ArithmeticError(f"{a} and {b} do not broadcast")
            return a
        if isinstance(b, int):
            return a if b == 1 else b
        if a.low >= 2:
            return a
        if b.low >= 2:
            return b
        first, second = sorted((a, b), key=lambda dim: dim.name)
        return self.opaque("broadcast", first, second, low=min(a.low, b.low))

    # ---- polynomials ----

    def _polynomial(self, extent: Extent) -> Mapping[Monomial, int]:
        if isinstance(extent, int):
            return {(): extent} if extent else {}
        extent = self.resolve(extent)
        known = self._meaning.get(extent.name)
        if known is not None:
            return known
        self._dims.setdefault(extent.name, extent)
        return {(extent.name,): 1}

    def nonnegative(self, extent: Extent) -> bool:
        """True when an extent cannot be below zero; an unnamed difference can."""
        return extent >= 0 if type(extent) is int else all(f >= 0 for f in self._polynomial(extent).values())

    def _key(self, extent: Extent) -> Hashable:
        return frozenset(self._polynomial(extent).items())

    def _extent(self, polynomial: Polynomial) -> Extent:
        terms = {term: factor for term, factor in polynomial.items() if factor}
        if not terms:
            return 0
        if len(terms) == 1:
            (term, factor) = next(iter(terms.items()))
            if not term:
                return factor
            if len(term) == 1 and factor == 1:
                return self.resolve(self._dims[term[0]])
        key = frozenset(terms.items())
        found = self._interned.get(key)
        if found is None:
            low, high, multiple = self._range(terms)
            self._serial += 1
            found = self._interned[key] = Dim(f"?{self._serial}", low, high, multiple)
            self._meaning[found.name] = terms
        return self.resolve(found)

    def _range(self, terms: Polynomial) -> tuple[int, int | None, int]:
        low: int | None = 0
        high: int | None = 0
        multiple = 0
        for term, factor in terms.items():
            dims = [self._dims[name] for name in term]
            smallest: int | None = prod(dim.low for dim in dims)
            highs = [dim.high for dim in dims if dim.high is not None]
            largest = prod(highs) if len(highs) == len(dims) else None
            multiple = gcd(multiple, abs(factor) * prod(dim.multiple_of for dim in dims))
            if factor < 0:
                smallest, largest = largest, smallest
            low = None if low is None or smallest is None else low + factor * smallest
            high = None if high is None or largest is None else high + factor * largest
        return max(low or 0, 0), high, max(multiple, 1)

    @staticmethod
    def _divide(top: Mapping[Monomial, int], bottom: Mapping[Monomial, int]) -> Polynomial | None:
        """Exact quotient by a single term or by a multiple of the same polynomial, else None."""
        if len(bottom) == 1:
            (under, divisor) = next(iter(bottom.items()))
            result: Polynomial = {}
            for term, factor in top.items():
                rest = _without(term, under)
                if rest is None or factor % divisor:
                    return None
                result[rest] = factor // divisor
            return result
        if not bottom or top.keys() != bottom.keys():
            return None
        ratios = {divmod(top[term], bottom[term]) for term in bottom}
        (ratio, remainder) = ratios.pop()
        return {(): ratio} if not ratios and remainder == 0 else None


def _without(term: Monomial, under: Monomial) -> Monomial | None:
    """`term` with the factors of `under` taken out, or None when one is missing."""
    rest = list(term)
    for name in under:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


def _cancel(above: list[Extent], below: list[Extent]) -> tuple[list[Extent], list[Extent]]:
    """Both lists without the symbolic factors that occur in each."""
    rest = list(above)
    kept: list[Extent] = []
    for extent in below:
        if type(extent) is Dim and extent in rest:
            rest.remove(extent)
        else:
            kept.append(extent)
    return rest, kept


__all__ = ["Extent", "SymbolTable"]
