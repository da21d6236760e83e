"""`python -m tests.failures.worker python -m MODULE FLAGS…`: a service whose models may name the components of `held`.

diffusers takes classes of other packages only where they were imported before. The log says which orders arrive.
"""

from __future__ import annotations

import logging
import runpy
import sys

import tests.failures.held  # noqa: F401  (so that diffusers finds it)

if __name__ == "__main__":
    logging.getLogger("services.worker.membership").setLevel(logging.DEBUG)
    del sys.argv[:3]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
