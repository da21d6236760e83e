"""The model has the table of transitions that the protocol has. Needs no spin."""

from __future__ import annotations

import re

from tests.model_checker.spin import MODEL
from triptych.rings import protocol
from triptych.rings.layout import Kind

TEXT = (MODEL.parent / "ledger.pml").read_text()


def test_every_line_of_the_table_is_in_the_model_and_no_other() -> None:
    found = re.findall(r":: line == (\w+) +&& changes\((\w+), +(\w+), +(\d)\)", TEXT)
    in_model = {line: (Kind[source], Kind[target], int(step)) for line, source, target, step in found}
    in_protocol = {name: (line.source, line.target, line.attempt_step) for name, line in protocol.TABLE.items()}
    assert in_model == in_protocol
    assert len(found) == len(in_model)
    assert TEXT.count(":: line ==") == len(found)


def test_kinds_have_the_same_numbers() -> None:
    defined = re.findall(r"^#define (FREE|WRITING|READY|LEASED) (\d)$", MODEL.read_text(), re.MULTILINE)
    assert {Kind[name]: int(number) for name, number in defined} == {kind: kind.value for kind in Kind}
