"""What a text-encoder process counts and measures."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry.metrics import Meter, Observation

from triptych.telemetry.instruments import Instruments

COMPUTED, KEPT, SHARED = "computed", "kept", "shared"
"""Where an answer comes from: a model, an equal call before, or an equal call at the same time."""


class TextEncoderMetrics:
    """The instruments of a text-encoder process. Without a meter every method does nothing."""

    def __init__(self, meter: Meter | None = None) -> None:
        self._instruments = Instruments(meter)
        about = "Calls that were answered"
        source = (COMPUTED, KEPT, SHARED)
        self._answers = self._instruments.count("triptych.text_encoder.answers", "{call}", about, source=source)
        about = "Time that a model ran"
        self._run = self._instruments.seconds("triptych.text_encoder.run", about)
        about = "Calls that ran as one with others"
        self._batched = self._instruments.count("triptych.text_encoder.batched", "{call}", about)

    def answered(self, source: str) -> None:
        """A call was answered."""
        self._answers.add(1, {"source": source})

    def ran(self, run_s: float, call_count: int) -> None:
        """A model ran for so many calls at once."""
        self._run.record(run_s)
        if call_count > 1:
            self._batched.add(call_count)

    def watch_embeddings(self, kept_bytes: Callable[[], int]) -> None:
        """Show how many bytes of answers are kept."""
        about = "Bytes of answers kept"
        self._instruments.amount("triptych.text_encoder.kept", "By", about, lambda: [Observation(kept_bytes())])
