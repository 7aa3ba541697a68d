"""``python -m tools.reduce``."""

from tools.reduce.command import main

main()
