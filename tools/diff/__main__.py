"""``python -m tools.diff``."""

from tools.diff.command import main

main()
