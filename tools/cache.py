"""``python -m tools.cache``: see what is kept between runs, and remove it."""

from __future__ import annotations

import time

import click

from ir.base.diag import LadingError, suggest
from tools.shared.cli import JSON_OPTION, QUIET_OPTION, Screen, command, megabytes

KINDS = {
    "logits": "logits that benchmarks use",
    "measurements": "what precision was chosen by",
    "moments": "calibration statistics",
    "quantized": "weights quantized by slow methods",
    "running": "bookmarks of stopped calibrations",
}
"""Rooms of the store that the compiler uses, and what they hold."""

ALL = "all"


@command("cache")
@click.option("--clear", metavar="KIND", help=f"Remove one kind, or {ALL}; what a running command uses stays.")
@JSON_OPTION
@QUIET_OPTION
def main(clear: str | None, as_json: bool, quiet: bool) -> int:
    """Show what is kept between runs, by kind, or remove it.

    Everything in the cache is made again when it is missing. LADING_CACHE sets its folder, LADING_CACHE_SIZE the most
    that it may hold; beyond that, what was used longest ago goes first.
    """
    from ir.base.store import cache_folder, cache_limit, folder_store

    store = folder_store(cache_folder(), cache_limit())
    kinds = {name: (0, 0, 0.0) for name in KINDS}
    for entry in store.entries():
        kind = entry.name.partition("/")[0]
        count, size, used = kinds.get(kind, (0, 0, 0.0))
        kinds[kind] = (count + 1, size + entry.size, max(used, entry.used))
    if clear is not None:
        if clear != ALL and clear not in kinds:
            hint = suggest(clear, [*kinds, ALL]) or f"known: {', '.join([*sorted(kinds), ALL])}"
            raise LadingError("U985", f"the cache holds nothing of the kind {clear!r}", str(store.folder), hint)
        removed, freed, held = store.clear(None if clear == ALL else clear)
        text = f"removed {removed} {_entries(removed)}, {megabytes(freed)}, from {store.folder}"
        if held:
            text += f"\n{held} {_entries(held)} in use by a running command {'stays' if held == 1 else 'stay'}"
        if not quiet:
            data = {"folder": str(store.folder), "removed": removed, "bytes": freed, "in_use": held}
            Screen(as_json, quiet).data(data, text)
        return 0
    total = sum(size for _, size, _ in kinds.values())
    if not quiet:
        rows = {name: {"entries": kinds[name][0], "bytes": kinds[name][1]} for name in sorted(kinds)}
        data = {"folder": str(store.folder), "limit": store.limit, "bytes": total, "kinds": rows}
        Screen(as_json, quiet).data(data, _words(str(store.folder), kinds, total, store.limit))
    return 0


def _words(folder: str, kinds: dict[str, tuple[int, int, float]], total: int, limit: int | None) -> str:
    most = f"at most {megabytes(limit)}" if limit is not None else "no limit"
    rows = [("kind", "size", "entries", "last used", "what it holds")]
    for name in sorted(kinds):
        count, size, used = kinds[name]
        rows.append((name, megabytes(size), str(count), _ago(used) if count else "", KINDS.get(name, "")))
    lines = [f"{kind:<12} {size:>10} {count:>8}  {used:<10}  {what}".rstrip() for kind, size, count, used, what in rows]
    return "\n".join([folder, *lines, f"{'total':<12} {megabytes(total):>10}, {most}"])


def _entries(count: int) -> str:
    return "entry" if count == 1 else "entries"


def _ago(then: float) -> str:
    seconds = max(0.0, time.time() - then)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return "just now"


if __name__ == "__main__":
    main()
