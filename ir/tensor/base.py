"""What a lazy tensor is, and the table of recipes with which derived ones are rebuilt; see `ir.tensor.base`."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ir.base.diag import LadingError
from ir.base.types import TensorType
from ir.tensor.recipes import RECIPES

PIECE_BYTES = 4 << 20


class Tensor(ABC):
    """An array that is not there yet.

    Attributes:
        type: element type and static shape.
        loc: where the numbers come from, such as ``model.safetensors:model.norm.weight``; the same for equal tensors.
    """

    def __init__(self, type: TensorType, loc: str) -> None:
        if not type.is_static:
            raise ValueError(f"a tensor has a static shape, not {type}")
        if not type.is_countable:
            raise LadingError("T254", f"no array can be {type}", where=loc)
        self.type = type
        self.loc = loc

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type} {self.loc}>"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, which is static."""
        return self.type.shape  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """Packed size in bytes (sub-byte types packed)."""
        return self.type.dtype.nbytes(math.prod(self.shape))

    @property
    def row_count(self) -> int:
        """Length of axis 0; 1 for rank 0."""
        return self.shape[0] if self.shape else 1

    @property
    def row_size(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[1:])

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Elements ``[stop - start, *shape[1:]]`` of the rows `start` to `stop`; the caller must not write to them."""

    @abstractmethod
    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Name, arguments and keywords with which `ir.tensor.recipes.RECIPES` rebuilds an equal tensor.

        Arguments are tensors, numbers, strings, booleans or tuples of numbers or strings.
        """

    @property
    def ranged(self) -> bool:
        """True when `elements` reads no more than it gives."""
        return False

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors among the arguments of the recipe."""
        return tuple(item for item in self.recipe()[1] if isinstance(item, Tensor))

    def elements(self, start: int, stop: int) -> np.ndarray:
        """A range of the row-major elements as a vector."""
        if start >= stop:
            return np.empty(0, self.type.dtype.numpy)
        width = self.row_size
        first = start // width
        flat = self.rows(first, -(-stop // width)).reshape(-1)
        return flat[start - first * width : stop - first * width]

    def pieces(self, budget: int = PIECE_BYTES) -> Iterator[tuple[int, int, np.ndarray]]:
        """All rows in order as ``(start, stop, rows)`` of about `budget` bytes, each checked against the type."""
        count = self.row_count
        step = max(1, budget // max(1, self.row_size * self.type.dtype.numpy.itemsize))
        for start in range(0, count, step):
            stop = min(count, start + step)
            yield start, stop, self._checked(self.rows(start, stop), start, stop)

    def load(self) -> np.ndarray:
        """The whole array.

        Raises:
            LadingError: T250 when the rows do not have the declared type.
        """
        out = np.empty(self.shape, self.type.dtype.numpy)
        table = out.reshape((self.row_count, *self.shape[1:]))
        for start, stop, rows in self.pieces():
            table[start:stop] = rows
        return out

    def digest(self) -> str:
        """SHA-256 (hex) of the type and the packed little-endian bytes; of the recipe and its sources when derived."""
        return self._digest

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the recipe, with files named and not read and inline data by value."""
        return self._fingerprint

    def release(self) -> None:
        """Give back what is held open or cached below this tensor; reading it again takes it up again."""
        for item in self.inputs:
            item.release()

    @cached_property
    def _digest(self) -> str:
        return _combine(self.recipe(), Tensor.digest)

    @cached_property
    def _fingerprint(self) -> str:
        return _combine(self.recipe(), Tensor.fingerprint)

    def _checked(self, rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        shape = (stop - start, *self.shape[1:])
        if rows.shape == shape and rows.dtype == self.type.dtype.numpy:
            return rows
        found = f"{rows.dtype}{list(rows.shape)}"
        message = f"recipe {self.recipe()[0]!r} declares {self.type} but rows {start} to {stop} are {found}"
        raise LadingError("T250", message, where=self.loc)

    def _bounds(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.row_count:
            raise IndexError(f"rows {start} to {stop} of {self.type}")


def _combine(recipe: tuple[str, tuple[Any, ...], dict[str, Any]], identify: Callable[[Tensor], str]) -> str:
    def plain(item: Any) -> list[str]:
        return ["tensor", identify(item)] if isinstance(item, Tensor) else [type(item).__name__, repr(item)]

    name, args, kwargs = recipe
    parts = [name, [plain(item) for item in args], {key: plain(item) for key, item in kwargs.items()}]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """True when both have the same type and recipe: files compare by path and place, inline data by value."""
    return a is b or (a.type == b.type and a.fingerprint() == b.fingerprint())


class Derived(Tensor):
    """Base of recipes: arguments are kept as given and say everything about the tensor."""

    name: ClassVar[str]

    def __init__(self, type: TensorType, *args: Any, **kwargs: Any) -> None:
        places = list(dict.fromkeys(item.loc for item in args if isinstance(item, Tensor) and item.loc != "inline"))
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        super().__init__(type, (places[0] if places else "inline") + more)
        self._recipe = (self.name, args, kwargs)

    @property
    def base(self) -> Tensor:
        """The first argument."""
        return self._recipe[1][0]

    def recipe(self) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """Name and arguments as given."""
        return self._recipe

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._recipe


def _rebuild(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return RECIPES[name](*args, **kwargs)


def refuse(name: str, why: str, *tensors: Tensor) -> LadingError:
    return LadingError("T254", f"{name}: {why}", where="\n".join(f"{item.loc}: {item.type}" for item in tensors[:4]))
