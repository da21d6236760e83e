"""Real fleets whose encoders hand their text encoders to a process of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fleet.processes import Fleet, free_port
from tests.telemetry import pages

TEXT_ENCODER = "text_encoder-0"


class EngineFleet(Fleet):
    """One of each role, and one text-encoder process, which keeps its address when it starts again."""

    def __init__(
        self,
        folder: Path,
        model: str,
        *,
        encoder_flags: Sequence[str] = (),
        text_encoder_flags: Sequence[str] = (),
        **others: Any,
    ) -> None:
        self.text_encoder_port, self.page_port = free_port(), free_port()
        encoder = ("--text-encoder-engine", f"process:127.0.0.1:{self.text_encoder_port}", *encoder_flags)
        served = ("--address", f"127.0.0.1:{self.text_encoder_port}", "--metrics-port", str(self.page_port))
        flags = {TEXT_ENCODER: (*served, *text_encoder_flags)}
        counts = {"encoder": 1, **others.pop("counts", {})}
        flags |= {f"encoder-{number}": encoder for number in range(counts["encoder"])}
        super().__init__(folder, model, flags_by_name=flags, counts={**counts, "text_encoder": 1}, **others)

    def answers(self, source: str) -> int:
        """Calls that the text encoder has answered from this source since its start."""
        page = pages.scrape(self.page_port)
        return int(pages.value(page, "triptych_text_encoder_answers_total", source=source))
