"""``python -m tools.fuzz``."""

from tools.fuzz.command import main

if __name__ == "__main__":
    main()
