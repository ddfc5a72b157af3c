"""Where the tests find the repository and their helpers."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
APPS = TESTS / "helpers" / "apps"
