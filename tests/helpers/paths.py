"""Paths of the repository and of the tests."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
APPS = TESTS / "helpers" / "apps"
