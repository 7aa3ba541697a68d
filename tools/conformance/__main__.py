"""``python -m tools.conformance``."""

from tools.conformance.command import main

main()
