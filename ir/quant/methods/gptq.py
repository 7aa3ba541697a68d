"""Codes that make up for each other's errors: rounding against the second moments of what flows into a weight.

The error of a row ``w`` stored as ``v`` is ``(w - v) H (w - v)^T`` with ``H = E[x x^T]``: the mean squared error of the
output. Numbers of the blocks come from a search. Then codes are rounded one feature at a time, each target moved by the
errors before it (Frantar et al. 2022, GPTQ, in the equal form of Chee et al. 2023, QuIP, which needs no inverse). Then
come sweeps of cyclic coordinate descent, over codes (Behdin et al. 2023, QuantEase) and over scales and zeros as they
are stored; each of its steps can only lower the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ir.base.types import F32
from ir.quant.form import Form, Numbers
from ir.quant.methods.base import Blocks, QuantMethod, Scratch
from ir.quant.methods.clip import search
from ir.quant.statistics.exact_products import Tiles, one_thread
from ir.quant.statistics.moments import Moments
from ir.quant.statistics.second_moments import Factor, factor_of
from ir.quant.storage import Storage
from ir.tensor.native import native

WIDTH = 1024
"""Columns of the arrays of rows that are treated together."""
BATCH = 128
"""Features whose effect on all others is applied in one product."""
MICRO = 32
"""Features whose effect on their batch is applied in one product."""
LARGEST = 1e12
"""Rows with larger weights are only rounded: their squares would not fit single precision."""
ROUNDS = {2: 3, 3: 2}
"""Passes with feedback by width, 1 where it says nothing: with few codes the targets leave the range of the weights."""
SWEEPS = {2: 6, 3: 6}
"""Most sweeps of descent by width, 4 where it says nothing."""
SWEPT = 2048
"""Features of a row divided into this give the sweeps, at least one. On the example one sweep ends 2 to 4 % above four,
two end 1 % above, and the time of a sweep goes with the square of the features."""


class SecondOrder(QuantMethod):
    """Feedback of errors in an order of small pivots, then coordinate descent over codes, scales and zeros."""

    name = "gptq"
    accepts = frozenset({F32})
    needs = "second-moments"
    slow = True

    def quantize(self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None) -> Blocks:
        """See `QuantMethod`."""
        return self.rounded(rows, storage, scratch, moments)

    def rounded(
        self, rows: np.ndarray, storage: Storage, scratch: Scratch, moments: Moments | None, *, alone: bool = False
    ) -> Blocks:
        """As `quantize`; `alone` is for rows that always come in these groups, which takes less time for few of them."""
        if moments is None:
            raise ValueError("the method 'gptq' cannot work without second moments")
        form = Form(storage)
        if not rows.size:
            return form.rounded(rows, search(rows, form, None, scratch), scratch)
        with one_thread(), np.errstate(over="ignore", invalid="ignore"):
            factor = factor_of(moments)
            numbers = search(rows, form, factor.pivots, scratch)
            plain = np.flatnonzero(np.abs(rows).max(axis=1, initial=0) > LARGEST)
            kept = form.rounded(rows[plain], numbers.rows(plain), scratch) if plain.size else None
            codes = np.empty(rows.shape, np.int8)
            step = Tiles.capacity(WIDTH)
            for first in range(0, len(rows), step):
                part = slice(first, min(len(rows), first + step))
                group = Group(rows[part], numbers.rows(part), form, factor, scratch, alone)
                sweeps = max(1, min(SWEEPS.get(storage.bits, 4), SWEPT // rows.shape[1]))
                group.run(ROUNDS.get(storage.bits, 1), sweeps)
                codes[part] = group.codes[:, group.tiles.places].T
                for item, table in zip(numbers, group.numbers, strict=True):
                    if item is not None and table is not None:
                        item[part] = table[:, group.tiles.places].T
        found = form.blocks(codes, numbers)
        if kept is not None:
            for whole, some in zip(found, kept, strict=True):
                if whole is not None:
                    whole[plain] = some
        return found


class Group:
    """Rows of a weight as columns ``[in, n]``, with columns of zeros in the unused places of tiles.

    Attributes:
        tiles: which columns are in use.
        codes: float32[in, n].
        numbers: of the blocks, ``[blocks, n]``.
        error: float32[in, n], weights minus what is stored.
        pull: float32[in, n], ``H @ error``; valid while descending.
    """

    def __init__(
        self, rows: np.ndarray, numbers: Numbers, form: Form, factor: Factor, scratch: Scratch, alone: bool
    ) -> None:
        self.length = rows.shape[1]
        self.tiles = Tiles(len(rows), alone=alone)
        self.form, self.factor, self.scratch = form, factor, scratch
        self.block = self.length // max(1, numbers.scale.shape[1])
        self.values = self._take("values", self.length)
        self.values[:] = 0
        self.values[:, self.tiles.places] = np.where(np.abs(rows).max(axis=1, initial=0) > LARGEST, 0, rows.T)
        self.codes = self._take("codes", self.length)
        self.error = self._take("error", self.length)
        self.pull = self._take("pull", self.length)
        self.numbers = numbers.each(self._columns)

    def _take(self, name: str, count: int) -> np.ndarray:
        return self.scratch.take(f"gptq-{name}", (count, self.tiles.width), np.float32)

    def _columns(self, part: np.ndarray) -> np.ndarray:
        table = np.ones((part.shape[1], self.tiles.width), np.float32)
        table[:, self.tiles.places] = part.T
        return table

    def run(self, rounds: int, sweeps: int) -> None:
        """Choose everything; `codes` and `numbers` hold the result."""
        loss = self._feed_back()
        for _ in range(rounds - 1):
            before = self.codes.copy(), self.error.copy(), self.numbers
            self.numbers = self._numbers_of_targets()
            found = self._feed_back()
            worse = found >= loss
            for kept, now in zip(before[:2], (self.codes, self.error), strict=True):
                np.copyto(now, kept, where=worse)
            self.numbers = self.numbers.where(worse, before[2])
            loss = np.minimum(found, loss)
        self.tiles.product(self.factor.hessian, self.error, self.pull)
        for left in reversed(range(sweeps)):
            self._descend(last=not left)

    def _in_turn(
        self,
        coupling: np.ndarray,
        moved: np.ndarray,
        changes: np.ndarray,
        step: Callable[[int], None],
        compiled: Callable[[slice], None] | None,
    ) -> None:
        """Take the features of a batch one after the other, each change moving the later ones.

        Args:
            coupling: float32[b, b]; ``coupling[i, j]`` times the change of ``i`` moves ``j``.
            moved: float32[b, n], what the steps read; written to.
            changes: float32[b, n], where step ``i`` leaves its change.
            step: called with each place in turn.
            compiled: does the same for a run of at most `MICRO` places, each change moving the later ones of the run.
        """
        size = len(moved)
        outer = self._take("outer", BATCH)
        for first in range(0, size, MICRO):
            last = min(size, first + MICRO)
            if compiled is not None:
                compiled(slice(first, last))
            for place in range(first, last) if compiled is None else ():
                step(place)
                if place + 1 < last:
                    part = outer[: last - place - 1]
                    np.multiply(coupling[place, place + 1 : last, None], changes[place], out=part)
                    np.add(moved[place + 1 : last], part, out=moved[place + 1 : last])
            if last < size:
                part = outer[: size - last]
                self.tiles.product(coupling[first:last, last:], changes[first:last], part)
                np.add(moved[last:], part, out=moved[last:])

    def _compiled(
        self, name: str, coupling: np.ndarray, shares: np.ndarray, tables: Sequence[np.ndarray]
    ) -> Callable[[slice], None] | None:
        """The compiled loop of a name over tables of a batch, for `_in_turn`; None without compiled loops."""
        loops = native()
        if loops is None:
            return None
        loop, low, high = getattr(loops, name), self.form.low, self.form.high
        return lambda run: loop(coupling[run, run], shares[run], *(table[run] for table in tables), low, high)

    # --- feedback -----------------------------------------------------------------------------------------------------

    def _feed_back(self) -> np.ndarray:
        """Round in the order of the factor; gives the loss of each row. The targets stay in `pull`."""
        order, feedback = self.factor.order, self.factor.feedback
        errors = self._take("sorted", self.length)
        moved = self._take("moved", BATCH)
        loss = np.zeros(self.tiles.width, np.float32)
        for start in range(0, self.length, BATCH):
            stop = min(self.length, start + BATCH)
            batch = moved[: stop - start]
            batch[:] = 0
            if start:
                self.tiles.product(feedback[:start, start:stop], errors[:start], batch)
            coupling = feedback[start:stop, start:stop]
            loss += self._feed_back_batch(order[start:stop], coupling, batch, errors[start:stop])
        self.error[order] = errors
        return loss

    def _feed_back_batch(
        self, features: np.ndarray, coupling: np.ndarray, moved: np.ndarray, errors: np.ndarray
    ) -> np.ndarray:
        blocks = features // self.block
        scale, zero = self.numbers.scale[blocks], self.numbers.zero[blocks]
        inverse = np.reciprocal(scale)
        shifted = self.values[features] - zero
        codes = self._take("batch-codes", BATCH)

        def step(place: int) -> None:
            code, error = codes[place], errors[place]
            np.add(shifted[place], moved[place], out=moved[place])
            self._round(moved[place], inverse[place], code)
            np.multiply(code, scale[place], out=error)
            np.subtract(shifted[place], error, out=error)

        tables = (moved, shifted, scale, inverse, codes, errors, errors)
        self._in_turn(coupling, moved, errors, step, self._compiled("feed_back", coupling, self.factor.pivots, tables))
        codes = codes[: len(features)]
        self.codes[features] = codes
        self.pull[features] = moved + zero
        rounding = np.square(moved - codes * scale)
        return np.add.reduce(rounding * self.factor.pivots[features, None], axis=0)

    def _round(self, target: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> None:
        np.multiply(target, inverse, out=out)
        np.rint(out, out=out)
        np.maximum(out, self.form.low, out=out)
        np.minimum(out, self.form.high, out=out)

    def _numbers_of_targets(self) -> Numbers:
        """Numbers of all blocks for the targets that the last pass met, not for the weights themselves."""
        targets = np.ascontiguousarray(self.pull[:, self.tiles.places].T)
        found = search(targets, self.form, self.factor.pivots, self.scratch)
        return found.each(self._columns)

    # --- descent ------------------------------------------------------------------------------------------------------

    def _descend(self, last: bool) -> None:
        """One sweep: the numbers of each block, then its codes, each to the least error given all others.

        After the `last` one nothing reads `pull`, so only features to come are told of changes.
        """
        hessian = self.factor.hessian
        step = self.block * max(1, BATCH // self.block)
        for start in range(0, self.length, step):
            stop = min(self.length, start + step)
            near = hessian[start:stop, start:stop]
            before = self.error[start:stop].copy()
            pull = self.pull[start:stop].copy()
            for first in range(start, stop, self.block):
                self._refit(first, pull, first - start, near)
            self._descend_codes(start, pull, near)
            np.subtract(self.error[start:stop], before, out=before)
            behind = stop if last else 0
            if behind < self.length:
                far = self._take("far", self.length - behind)
                self.tiles.product(hessian[start:stop, behind:], before, far)
                np.add(self.pull[behind:], far, out=self.pull[behind:])

    def _descend_codes(self, start: int, pull: np.ndarray, near: np.ndarray) -> None:
        """Codes of the features that `pull` and `near` speak of, the first of which is `start`."""
        changes = self._take("changes", BATCH)
        for first in range(0, len(pull), BATCH):
            last = min(len(pull), first + BATCH)
            self._descend_batch(start + first, pull[first:last], near[first:last, first:last], changes)
            if last < len(pull):
                outer = self._take("far", len(pull) - last)
                self.tiles.product(near[first:last, last:], changes[: last - first], outer)
                np.add(pull[last:], outer, out=pull[last:])

    def _descend_batch(self, start: int, pull: np.ndarray, coupling: np.ndarray, changes: np.ndarray) -> None:
        part = slice(start, start + len(pull))
        blocks = np.arange(part.start, part.stop) // self.block
        scale = self.numbers.scale[blocks]
        inverse = np.reciprocal(scale)
        shifted = self.values[part] - self.numbers.zero[blocks]
        codes, errors = self.codes[part], self.error[part]
        shares = np.reciprocal(np.diagonal(coupling))
        new = self._take("target", 1)[0]

        def step(place: int) -> None:
            code, error = codes[place], errors[place]
            np.multiply(pull[place], shares[place], out=new)
            np.subtract(new, error, out=new)
            np.add(new, shifted[place], out=new)
            self._round(new, inverse[place], code)
            np.multiply(code, scale[place], out=new)
            np.subtract(shifted[place], new, out=new)
            np.subtract(new, error, out=changes[place])
            error[:] = new

        tables = (pull, shifted, scale, inverse, codes, errors, changes)
        self._in_turn(coupling, pull, changes, step, self._compiled("descend", coupling, shares, tables))

    def _refit(self, first: int, pull: np.ndarray, place: int, near: np.ndarray) -> None:
        """Move scale and zero of the block that begins with feature `first` to the least error for its codes.

        Only where that lowers the error as stored. `pull` and `near` are those of the features around, of which the
        block begins at `place`; `pull` is kept up.
        """
        index = first // self.block
        part, own = slice(first, first + self.block), slice(place, place + self.block)
        codes, error = self.codes[part], self.error[part]
        now = self.numbers.each(lambda table: table[index])
        chosen = now.where(*self._wished(codes, pull[own], near[own, own], now))
        for table, row in zip(self.numbers, chosen, strict=True):
            if table is not None:
                table[index] = row
        change = self.values[part] - (codes * chosen.scale + chosen.zero) - error
        error += change
        effect = self._take("far", len(pull))
        self.tiles.product(near[own], change, effect)
        np.add(pull, effect, out=pull)

    def _wished(
        self, codes: np.ndarray, pull: np.ndarray, hessian: np.ndarray, now: Numbers
    ) -> tuple[np.ndarray, Numbers]:
        """Best storable numbers for the codes of a block, and where they are better than those there are.

        The error as a function of scale and zero is quadratic, with the second derivatives `qq`, `q1`, `11` and the
        slopes `q`, `1` in the directions of the codes and of a constant.
        """
        spread = self._take("far", len(codes))
        self.tiles.product(hessian, codes, spread)
        qq, q1 = _sum(codes * spread), _sum(spread)
        ones = float(hessian.sum(dtype=np.float64))
        slope, level = _sum(codes * pull), _sum(pull)
        scale, zero = now.scale.astype(np.float64), now.zero.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if self.form.kind == "float":
                bend = qq * ones - q1 * q1
                sound = bend > 1e-6 * qq * ones
                wish = self.form.project(
                    scale + np.where(sound, (ones * slope - q1 * level) / bend, 0),
                    zero + np.where(sound, (qq * level - q1 * slope) / bend, 0),
                )
            else:
                point = 0.0 if now.point is None else now.point.astype(np.float64)
                bend = qq - 2 * point * q1 + point * point * ones
                best = scale * (qq - point * q1) + zero * (q1 - point * ones) + slope - point * level
                best = np.where(bend > 0, best / bend, scale)
                wish = self.form.project(best, -point * best)
            ds, dz = wish.scale - scale, wish.zero - zero
            gain = 2 * (ds * slope + dz * level) - (ds * ds * qq + 2 * ds * dz * q1 + dz * dz * ones)
        return gain > 0, wish


def _sum(columns: np.ndarray) -> np.ndarray:
    return np.add.reduce(columns, axis=0).astype(np.float64)


METHOD = SecondOrder()
"""The row of `ir.quant.methods.base.METHODS`."""
