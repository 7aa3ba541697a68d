"""``python -m tools.doctor``."""

from tools.doctor.command import main

main()
