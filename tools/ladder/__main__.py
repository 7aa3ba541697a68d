"""``python -m tools.ladder``."""

from tools.ladder.command import main

main()
