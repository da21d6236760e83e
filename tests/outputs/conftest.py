"""Folders of tiny models, made once."""

from tests.families.conftest import _one_thread, family_folder  # noqa: F401
from tests.families_all.conftest import fleet_of  # noqa: F401
from tests.stages.conftest import folder_of, model  # noqa: F401
