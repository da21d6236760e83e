"""Start the roles of models in this process and say how that went: one line of JSON for each folder.

`python -m tests.families.start FOLDER...`
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Of each folder: the error's class, empty where all roles started, and what it says."""
    from triptych.errors import MissingExtra

    for folder in sys.argv[1:]:
        try:
            start(folder)
            outcome = ("", "")
        except Exception as error:  # noqa: BLE001 — it is told to the test
            outcome = (type(error).__name__, str(error))
        print(json.dumps(outcome), flush=True)
        if outcome[0] == MissingExtra.__name__ and "running a stage" in outcome[1]:
            return  # nothing can be started


def start(folder: str) -> None:
    """Raises what the start of one of the roles raises."""
    from triptych.roles import ROLES
    from triptych.stages.describe import describe
    from triptych.stages.stage import Stage
    from triptych.stages.whole import Whole

    whole = Whole.open(folder)
    describe(whole)
    for role in ROLES:
        Stage.load(whole, role)


if __name__ == "__main__":
    main()
