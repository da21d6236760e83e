"""The tiny models of `tests/families`."""

from tests.families.conftest import _one_thread, family_folder  # noqa: F401 — fixtures
