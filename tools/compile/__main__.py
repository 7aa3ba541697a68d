"""``python -m tools.compile``."""

from tools.compile.command import main

main()
