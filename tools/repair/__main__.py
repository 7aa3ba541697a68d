"""``python -m tools.repair``."""

from tools.repair.command import main

main()
