"""An encoder's text encoder in a vLLM server that somebody else runs: another engine that a stage is given, over HTTP.

vLLM's kernels add up in another order, so its embeddings differ in last bits: every result says so (`Job.lossy`).
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from triptych.addresses import Address
from triptych.config import WorkerConfig
from triptych.errors import InvalidRequest, Unavailable, WrongState
from triptych.means.tables import LOSSY
from triptych.stages.engines import Answer, Call

from .text_encoder import DESCRIBE_TIMEOUT_S, ENCODE_TIMEOUT_S, RemoteEngine

COMPONENT = "text_encoder"
"""A server has one model: that of the component which every family calls so."""
DECLARED = {COMPONENT: "vllm", LOSSY: f"encoder: {COMPONENT} vllm"}
ANSWER_BYTES_MAX = 2**30
"""Longest answer: 32,768 tokens of 5,120 numbers in base64 take 0.9 GB."""
_NOT_TAKEN = (400, 413, 422)
_MAY_PASS = (408, 429)


class VllmEngine(RemoteEngine[str]):
    """A running `vllm serve --runner pooling`. See `engines.Engine`."""

    def __init__(self, config: WorkerConfig, address: Address) -> None:
        super().__init__(config)
        self._address = address

    def open(self, config_digest: str, settings: Mapping[str, str]) -> dict[str, str]:
        """See `Engine`. The digest of its model is unknown: who starts the server answers for it."""
        self._open(config_digest, settings)
        return DECLARED

    def serves(self, names: Sequence[str]) -> list[str]:
        """See `Engine`."""
        return [name for name in names if name == COMPONENT]

    def call(self, call: Call) -> Answer:
        """See `Engine`: of the output it has the last hidden states."""
        from triptych.stages import served_tokens  # late: it imports torch

        asked = served_tokens.asked_of(call)
        rows = self._asked(lambda: self._embedded(asked.prompts))
        return asked.answer(rows, self._config.dtype, self._config.device)

    async def _described(self) -> str:
        """The name of its model."""
        models = await asyncio.to_thread(self._request, "GET", "/v1/models", None, DESCRIBE_TIMEOUT_S)
        self._description = str(_of(models, "data", 0, "id"))
        return self._description

    async def _embedded(self, prompts: list[list[int]]) -> list[np.ndarray[Any, Any]]:
        """The last hidden states of each prompt, shaped `(tokens, hidden size)`."""
        model = self._description or await self._described()
        options = {"task": "token_embed", "use_activation": False, "encoding_format": "base64"}
        body = {"model": model, "input": prompts, **options}
        answer = await asyncio.to_thread(self._request, "POST", "/pooling", body, ENCODE_TIMEOUT_S)
        return [_rows(_of(answer, "data", index, "data"), len(one)) for index, one in enumerate(prompts)]

    def _request(self, method: str, path: str, body: object, timeout_s: float) -> Any:
        """What a call returns. Raises Unavailable, InvalidRequest for a prompt that it doesn't take, WrongState."""
        connection = http.client.HTTPConnection(self._address.host, self._address.port, timeout=timeout_s)
        try:
            data = json.dumps(body) if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read(ANSWER_BYTES_MAX)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"{type(error).__name__} at {method} {path}") from error
        finally:
            connection.close()
        if response.status in _NOT_TAKEN:  # its message may quote the tokens
            raise InvalidRequest("prompt", f"refused with {response.status}", "prompts that the server takes")
        if response.status >= 500 or response.status in _MAY_PASS:
            raise Unavailable(f"{method} {path} was answered {response.status}")
        if response.status != http.HTTPStatus.OK:
            raise WrongState(f"{self.name} answers {method} {path} with {response.status}: is it vLLM, and open?")
        try:
            return json.loads(text)
        except ValueError as error:
            raise WrongState(f"{self.name} answers {method} {path} with other things than JSON") from error


def _of(answer: Any, *steps: str | int) -> Any:
    try:
        for step in steps:
            answer = answer[step]
    except (LookupError, TypeError) as error:
        raise WrongState("the vLLM server's answer lacks " + ".".join(map(str, steps))) from error
    return answer


def _rows(text: Any, count: int) -> np.ndarray[Any, Any]:
    try:
        return np.frombuffer(base64.b64decode(text), np.float32).reshape(count, -1)
    except (TypeError, ValueError) as error:
        raise WrongState(f"the vLLM server's answer isn't one row for each of {count} tokens") from error
