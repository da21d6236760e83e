"""Fixtures of the end-to-end tests that a fuzzed fleet needs, too."""

from tests.e2e.conftest import model_folder

__all__ = ["model_folder"]
