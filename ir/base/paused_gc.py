"""The garbage collector, out of the way while large graphs are built or rewritten.

That makes little but live objects, which the collector would visit over and over, for longer than most passes take.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """No automatic collection in the block; afterwards as before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


__all__ = ["paused_collection"]
