"""``python -m lading``, and the command ``lading`` of an installation."""

from __future__ import annotations

import sys

from lading.rooms import prefer_own


def main() -> None:
    """Run the command line; a package of another that is found in place of an own one is named, not traced."""
    try:
        prefer_own()
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    from tools.main import main as commands

    commands()


if __name__ == "__main__":
    main()
