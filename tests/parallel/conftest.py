"""Fixtures of the end-to-end tests."""

from tests.e2e.conftest import model_folder as model_folder
