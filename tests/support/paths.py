"""Where things lie in the source tree."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""

DATA = ROOT / "tests" / "data"
"""Recorded inputs of tests; its README says where they come from."""

EXAMPLE = ROOT / "examples" / "tiny-qwen2.5"
"""The trained example checkpoint."""
