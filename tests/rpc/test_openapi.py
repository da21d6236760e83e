"""docs/openapi.json is what the protos say."""

from __future__ import annotations

import json

from google.api import annotations_pb2

from tests.rpc.test_required_fields import SERVICES
from tools.openapi import ROOT, make

PUBLISHED = ROOT / "docs/openapi.json"


def test_the_published_file_is_fresh() -> None:
    """`make proto` writes it."""
    assert PUBLISHED.read_text() == make()


def test_every_rule_has_its_operation() -> None:
    wanted = set()
    for service in SERVICES:
        for method in service.methods:
            rule = method.GetOptions().Extensions[annotations_pb2.http]
            for binding in (rule, *rule.additional_bindings):
                if verb := binding.WhichOneof("pattern"):
                    wanted.add((verb, getattr(binding, verb)))
    paths = json.loads(PUBLISHED.read_text())["paths"]
    assert {(verb, path) for path, verbs in paths.items() for verb in verbs} == wanted
    assert len(wanted) >= 13
