"""``python -m tools.run``."""

from tools.run.command import main

main()
