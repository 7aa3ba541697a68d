"""``python -m tools.matrix``."""

from tools.matrix.command import main

main()
