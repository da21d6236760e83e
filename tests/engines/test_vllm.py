"""An encoder whose text encoder is in a vLLM server: the protocol against a server that computes by transformers, and
the difference that vLLM itself makes, where it is installed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from services.worker.vllm import DECLARED, VllmEngine
from tests.e2e.conftest import SMALL, ended
from tests.engines.test_families import values_of
from tests.fleet.pooling import serving
from tests.fleet.processes import Fleet, free_port, wait_until
from triptych.addresses import parse
from triptych.config import WorkerConfig
from triptych.errors import EngineAbsent, InvalidRequest, WrongState
from triptych.means.tables import LOSSY
from triptych.stages.engines import Call
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED
from triptych_client.request import build_request

DIFFERENCE_MAX = 1e-5
"""Bound on what vLLM changes in float32, of values around 1: ten times what docs/engines.md states."""
VLLM_START_S = 300.0


@contextmanager
def engine_at(port: int, **settings: Any) -> Iterator[VllmEngine]:
    """An engine on an event loop of its own, as a worker has it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    address = f"127.0.0.1:{port}"

    async def made() -> VllmEngine:
        return VllmEngine(WorkerConfig(text_encoder_engine=f"vllm:{address}", **settings), parse("engine", address))

    try:
        yield asyncio.run_coroutine_threadsafe(made(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def whole(family_folder: Callable[[str], str]) -> Whole:
    return Whole.open(family_folder("qwenimage"))


@pytest.fixture(scope="module")
def embed(whole: Whole) -> Callable[[torch.Tensor], torch.Tensor]:
    model = whole.components().load("text_encoder")
    return lambda tokens: model(input_ids=tokens, output_hidden_states=True).hidden_states[-1]


def encoded(stage: Stage, whole: Whole) -> dict[str, object]:
    return stage.run(values_of(whole), lambda _step: None, lambda: False)


def difference(made: Mapping[str, object], expected: Mapping[str, object]) -> float:
    """The largest, of all that an encoder hands on."""
    assert made.keys() == expected.keys()
    pairs = [(made[name], value) for name, value in expected.items() if isinstance(value, torch.Tensor)]
    assert all(one.shape == other.shape and one.dtype == other.dtype for one, other in pairs)
    return max(float((one.double() - other.double()).abs().max()) for one, other in pairs)


def test_an_encoder_takes_its_hidden_states_from_a_server(whole: Whole, embed) -> None:
    expected = encoded(Stage.load(whole, ROLE_ENCODER), whole)
    with serving(embed) as server, engine_at(server.server_port) as engine:
        stage = Stage.load(whole, ROLE_ENCODER, engine=engine)
        assert "text_encoder" not in stage.component_bytes
        assert stage.settings[LOSSY] == DECLARED[LOSSY]
        assert difference(encoded(stage, whole), expected) < DIFFERENCE_MAX
        assert "text_encoder" not in stage.component_bytes
        assert server.asked, "the server has computed it"


def test_calls_that_are_more_than_tokens_are_not_sent(whole: Whole, embed) -> None:
    tokens = torch.tensor([[5, 9, 33, 7]])
    config = whole.components().load("text_encoder").config
    with serving(embed) as server, engine_at(server.server_port) as engine:
        for given in (
            {"input_ids": tokens, "pixel_values": torch.ones(1)},
            {"inputs_embeds": torch.ones(1, 4, 8)},
            {"input_ids": tokens, "attention_mask": torch.zeros_like(tokens)},
        ):
            with pytest.raises(InvalidRequest):
                engine.call(Call("text_encoder", "", (), given, (), config))
        with pytest.raises(InvalidRequest):
            engine.call(Call("text_encoder", "model", (tokens,), {}, (), config))
        assert not server.asked


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_sent_and_comes_back_as_zeros(whole: Whole, embed, side: str) -> None:
    config = whole.components().load("text_encoder").config
    tokens = torch.tensor([[5, 9, 33], [5, 9, 0] if side == "right" else [0, 5, 9]])
    mask = (tokens != 0).long()
    with serving(embed) as server, engine_at(server.server_port) as engine:
        given = {"input_ids": tokens, "attention_mask": mask, "output_hidden_states": True}
        answer = engine.call(Call("text_encoder", "", (), given, (), config))
        assert server.asked == [[[5, 9, 33], [5, 9]]]
    last = answer.output.last_hidden_state
    assert torch.equal(last, answer.output.hidden_states[-1])
    assert torch.equal(last[1][mask[1].bool()], embed(torch.tensor([[5, 9]]))[0].float())
    assert not last[1][~mask[1].bool()].any()


def test_a_part_that_no_server_has_is_computed_here(whole: Whole, embed) -> None:
    """Its text encoder is loaded in the middle of the call, and all later ones stay here."""
    own = whole.components().load("text_encoder")
    components = whole.components()
    tokens = torch.tensor([[5, 9, 33, 7]])
    with serving(embed) as server, engine_at(server.server_port) as engine, torch.no_grad():
        components.engine = engine
        output = components.load("text_encoder")(input_ids=tokens, output_hidden_states=True)
        expected = own(input_ids=tokens, output_hidden_states=True)
        assert torch.equal(output.hidden_states[1], expected.hidden_states[1])
        asked = len(server.asked)
        again = components.get("text_encoder")(input_ids=tokens, output_hidden_states=True)
        assert torch.equal(again.logits, expected.logits)
        assert len(server.asked) == asked


def test_a_server_of_another_model_is_refused(whole: Whole) -> None:
    config = whole.components().load("text_encoder").config
    tokens = torch.tensor([[5, 9]])
    with (
        serving(lambda tokens: torch.ones(1, tokens.shape[1], 7)) as server,
        engine_at(server.server_port) as engine,
        pytest.raises(WrongState, match="7 wide"),
    ):
        engine.call(Call("text_encoder", "", (), {"input_ids": tokens}, (), config))


def test_an_absent_server_is_waited_for_or_replaced(whole: Whole) -> None:
    with engine_at(free_port(), text_encoder_wait_s=0.1) as engine:
        with pytest.raises(EngineAbsent, match="is absent"):
            Stage.load(whole, ROLE_ENCODER, engine=engine)
        assert "is absent" in engine.absent_for, "what the worker says that it waits for"
    with engine_at(free_port(), text_encoder_absent="local") as engine:
        stage = Stage.load(whole, ROLE_ENCODER, engine=engine)
        assert difference(encoded(stage, whole), encoded(Stage.load(whole, ROLE_ENCODER), whole)) == 0


@pytest.mark.timeout(600)
def test_a_job_waits_for_its_server_and_says_that_it_was_there(tmp_path: Path, whole: Whole, embed) -> None:
    """Through real processes, with a server that goes away and comes back."""
    port = free_port()
    flags = {"encoder-0": ("--text-encoder-engine", f"vllm:127.0.0.1:{port}")}
    fields = {**SMALL, "width": 32, "output_format": "npy"}
    fleet = Fleet(tmp_path / "fleet", str(whole.model), flags_by_name=flags)
    with serving(embed, port):
        fleet.__enter__()
    try:
        with fleet.client() as client:
            job_id = client.submit(build_request("a red circle", **fields)).job_id
            wait_until(lambda: "is absent" in fleet.log("encoder-0"), 100.0, "the encoder misses its server")
            with serving(embed, port):
                job = ended(client, job_id)
            assert job.state == JOB_STATE_SUCCEEDED, job.error
            assert DECLARED[LOSSY] in job.lossy
            assert not job.attempts
    finally:
        fleet.__exit__(None, None, None)


@pytest.mark.timeout(600)
def test_the_difference_that_vllm_makes(tmp_path: Path) -> None:
    """A tiny Qwen2 in float32 on a CPU: `DIFFERENCE_MAX` bounds it."""
    command = os.environ.get("TRIPTYCH_VLLM") or shutil.which("vllm")
    if not command:  # also in CI: it takes an environment of its own, of 3.5 GB (docs/engines.md)
        pytest.skip("vLLM isn't installed: put its `vllm` on the path, or its path into TRIPTYCH_VLLM")
    model = tiny_qwen2(tmp_path / "model")
    port = free_port()
    with vllm_server(command, tmp_path, port), engine_at(port, text_encoder_wait_s=VLLM_START_S) as engine:
        engine.open("", {})
        tokens = torch.randint(5, 500, (2, 60), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(tokens)
        mask[1, 40:] = 0
        given = {"input_ids": tokens, "attention_mask": mask, "output_hidden_states": True}
        answer = engine.call(Call("text_encoder", "", (), given, (), model.config))
    with torch.no_grad():
        expected = model(**given).hidden_states[-1]
    made, own = answer.output.hidden_states[-1][mask.bool()], expected[mask.bool()]
    largest = float((made - own).abs().max())
    print(f"largest difference {largest:.2e}, relative {float((made - own).norm() / own.norm()):.2e}")
    assert 0 < float(own.abs().mean()) < 2
    assert largest < DIFFERENCE_MAX


def tiny_qwen2(folder: Path) -> Any:
    """The language part of a Qwen2.5-VL, in small; vLLM's kernels take heads of 64."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 512}
    config = transformers.Qwen2Config(num_attention_heads=2, num_key_value_heads=1, **sizes)
    model = transformers.Qwen2ForCausalLM(config).eval()
    model.save_pretrained(folder)
    words = tokenizers.models.WordLevel({f"t{number}": number for number in range(512)}, unk_token="t0")
    names = {"unk_token": "t0", "eos_token": "t1", "pad_token": "t2"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), **names)
    tokenizer.save_pretrained(folder)
    return model


@contextmanager
def vllm_server(command: str, folder: Path, port: int) -> Iterator[None]:
    argv = [command, "serve", str(folder / "model"), "--runner", "pooling", "--dtype", "float32", "--enforce-eager"]
    argv += ["--host", "127.0.0.1", "--port", str(port)]
    argv += ["--pooler-config", '{"task": "token_embed", "use_activation": false}']
    own = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    own |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with (
        (folder / "vllm.log").open("w") as log,
        subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, **own}) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)
