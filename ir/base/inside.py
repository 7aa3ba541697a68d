"""Which files belong to a folder: a path that leaves it by dots or links leads to somebody else's."""

from __future__ import annotations

from pathlib import Path


def outside(path: Path, folder: Path) -> Path | None:
    """Where a path really leads when that is outside of a folder; None when it stays inside or can lead nowhere.

    The files of a snapshot in the Hugging Face cache are links to ``blobs`` of the same repository, which belong to
    the snapshot: ``REPOSITORY/snapshots/REVISION/config.json -> ../../blobs/DIGEST``.
    """
    try:
        real, root = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):
        # A name that no file has, or links that lead in circles.
        return None
    if real.is_relative_to(root) or real.parent in _blobs_of(root):
        return None
    return real


def _blobs_of(root: Path) -> list[Path]:
    """Where the cache keeps the files of the snapshot that a folder is, or lies in."""
    snapshots = [parent.parent for parent in (root, *root.parents) if parent.parent.name == "snapshots"]
    return [place.parent / "blobs" for place in snapshots]


__all__ = ["outside"]
