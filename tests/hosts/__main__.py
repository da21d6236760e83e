"""Run these tests in a network and a mount namespace of their own: `python -m tests.hosts [ARGUMENTS OF PYTEST]`.

Where this machine or user can't have namespaces, the tests say why they are skipped.
"""

from __future__ import annotations

import sys

import pytest

from tests.chaos import network

ARGUMENTS = ["tests/hosts", *sys.argv[1:]]

if __name__ == "__main__":
    if not network.reason_against():
        network.enter("pytest", ARGUMENTS)
    sys.exit(pytest.main(ARGUMENTS))
