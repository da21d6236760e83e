"""Good inputs to start from: fuzzing bends them."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.nasty import Nasty
from triptych.media import encoding, tensor_files
from triptych.rings import attach, protocol
from triptych.rings.layout import Geometry
from triptych.rings.memory import MemoryDriver
from triptych.transport import codec, room, shared_memory
from triptych.v1 import dispatch_pb2, job_pb2, model_pb2, ring_service_pb2, room_pb2

MEDIA = Path(__file__).parents[1] / "media" / "decoding" / "media"
"""Files that other tools made."""
MODULES = [
    "os",
    "subprocess",
    "diffusers",
    "diffusers.models",
    "diffusers.pipelines.pipeline_utils",
    "diffusers.utils.outputs",
    "diffusers.models.autoencoders.vae",
    "diffusers.schedulers.scheduling_utils",
    "transformers",
    "transformers.training_args",
    "transformers.modeling_outputs",
    "transformers.utils.generic",
    "torch.nn",
    "builtins",
    "",
    ".",
    "diffusers..",
    "diffusers.\0",
    "diffusers.commands.diffusers_cli",
]
NAMES = [
    "system",
    "Popen",
    "BaseOutput",
    "BaseOutput.__init__",
    "__builtins__",
    "DiffusionPipeline",
    "DecoderOutput",
    "BaseModelOutput",
    "TrainingArguments",
    "ExplicitEnum",
    "KarrasDiffusionSchedulers",
    "eval",
    "",
    ".",
    "a.b.c",
]
KNOWN: dict[str, list[Any]] = {
    "module": MODULES,
    "name": NAMES,
    "member": ["LMSDiscreteScheduler", "__class__", "mro", ""],
    "dtype": ["float32", "float64", "qint8", "nn", "__loader__", "float8_e4m3fn", "int64", "bool"],
    "device": ["cpu", "cuda:0", "meta", "cpu:" + "9" * 50, "hpu", ""],
    "mode": ["RGB", "L", "P", "1", "F", "I;16", ""],
    "tensor": [0, 1],
    "array": [0, 1],
    "pixels": [0, 1],
    "state": [0, 1],
    "offset_bytes": [0, 64, 8128, 8192],
    "size_bytes": [0, 4, 24, 8192],
    "shape": [0, 1, 2, 3, 2**62],
    "strides": [0, 1, 2, 3, 2**62],
    "width": [0, 1, 2, 2**32 - 1],
}
"""Values of a manifest's fields that get past a first check."""


@functools.cache
def ring(geometry: Geometry, name: int, epoch: int, rank: int) -> bytes:
    """A ring with a free slot, two entries that wait, and one that is leased."""
    memory = bytearray(geometry.ring_bytes)
    driver = MemoryDriver(memoryview(memory))
    driver.execute(attach.format_ring(geometry, name, epoch))
    first = lambda count: 0  # noqa: E731
    for target, payload in enumerate(dispatches()[:3]):
        driver.execute(protocol.publish(geometry, payload[: geometry.payload_bytes_max], 1, target, first))
    driver.execute(protocol.claim(geometry, rank, first))
    return bytes(memory)


def dispatches() -> list[bytes]:
    """Dispatches, as they stand in slots."""
    whole = dispatch_pb2.Dispatch(job_id="job-1", role=dispatch_pb2.ROLE_TRANSFORMER, sender_rank=1, traceparent="00-")
    whole.room.ParseFromString(room_refs()[0])
    whole.deadline_time.GetCurrentTime()
    small = dispatch_pb2.Dispatch(job_id="job-2", receiver_rank=2)
    return [small.SerializeToString(), whole.SerializeToString(), b"", *_filled(dispatch_pb2.Dispatch, 6)]


def leases() -> list[bytes]:
    """Leases."""
    held = ring_service_pb2.Lease(ring=dispatch_pb2.RING_PHASE1, slot=1, ticket=5, attempt=255, rank=3)
    return [held.SerializeToString(), *_filled(ring_service_pb2.Lease, 6)]


def room_refs() -> list[bytes]:
    """References to rooms, on this host and elsewhere."""
    ref = room_pb2.RoomRef(
        room_id=9,
        host_id=shared_memory.host_id(),
        arena=f"{shared_memory.SHARED_MEMORY}/triptych-arena-1-0",
        offset_bytes=64,
        size_bytes=4096,
        xxh3_128=bytes(16),
        owner_rank=1,
        owner_address="127.0.0.1:1",
    )
    found = [ref.SerializeToString()]
    for arena in ("/dev/shm/../etc/passwd", "/etc/passwd", "/dev/shm/triptych-arena-\0", "/dev/shm/triptych-arena-x"):
        ref.arena = arena
        found.append(ref.SerializeToString())
    return [*found, *_filled(room_pb2.RoomRef, 6)]


@functools.cache
def _states() -> tuple[dict[str, object], ...]:
    """Values of every kind that crosses. torch and diffusers are imported by who asks for them only."""
    import torch
    from diffusers.models.autoencoders.vae import DecoderOutput
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

    return (
        {"number": 1, "text": "a", "raw": b"x", "big": 10**40, "z": 1j, "none": None, "flag": True, "x": 0.5},
        {
            "t": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
            "a": np.arange(4, dtype=np.int16),
            "s": np.float32(2),
        },
        {
            "list": [1, (2, {3}), frozenset({"k"})],
            "map": {"k": Image.new("RGB", (2, 2)), 2: None},
            "slice": slice(1, 2),
        },
        {"g": torch.Generator(), "dtype": torch.bfloat16, "device": torch.device("cpu"), "size": torch.Size([1, 2])},
        {"o": DecoderOutput(sample=torch.ones(1)), "e": KarrasDiffusionSchedulers.LMSDiscreteScheduler},
    )


@functools.cache
def manifests() -> list[bytes]:
    """Manifests whose tensors lie in the first 8 KiB."""
    found = []
    for state in _states():
        encoded = codec.encode(state, "job")
        room.lay_out(1, encoded.manifest, encoded.buffers)
        found.append(encoded.manifest.SerializeToString(deterministic=True))
    return [*found, *_filled(room_pb2.Manifest, 12)]


def rooms(room_id: int) -> list[bytes]:
    """Whole rooms."""
    found = []
    for state in _states():
        encoded = codec.encode(state, "job")
        found.append(b"".join(room.lay_out(room_id, encoded.manifest, encoded.buffers)[0]))
    return [*found, bytes(64)]


@functools.cache
def description() -> model_pb2.ModelDescription:
    """A model with an input of every kind."""
    kinds = model_pb2.InputKind.items()
    made = model_pb2.ModelDescription(model="sample", size_multiple=8, frame_multiple=4, outputs=["videos"])
    for name, kind in kinds:
        made.inputs.add(name=name.removeprefix("INPUT_KIND_").lower(), kind=kind)
    for name in ("prompt", "negative_prompt", "height", "width", "num_frames", "num_inference_steps"):
        made.inputs.add(name=name, kind=model_pb2.INPUT_KIND_TEXT if "prompt" in name else model_pb2.INPUT_KIND_INTEGER)
    return made


def requests() -> list[bytes]:
    """Requests."""
    good = job_pb2.GenerationRequest(prompt="a", height=32, width=32, num_frames=5, num_inference_steps=3, seed=1)
    good.parameters.update({"number": 1.5, "text": "b", "list": [1, [2]], "mapping": {"k": {"l": None}}})
    good.media.add(name="image", data=pictures()[0])
    good.deadline_time.GetCurrentTime()
    tree = job_pb2.GenerationRequest(prompt="a", seeds=[1])
    parts = tree.inputs["object"].map_value.fields
    parts["image"].media.data = pictures()[0]
    parts["numbers"].list_value.items.add(int_value=1)
    tree.inputs["tensor"].tensor.data = tensors()[0]
    tree.inputs["unspecified"].list_value.items.add(string_value="b")
    return [good.SerializeToString(), tree.SerializeToString(), *_filled(job_pb2.GenerationRequest, 12)]


def tensors() -> list[bytes]:
    """Small safetensors files, of which the second holds two tensors."""
    one = tensor_files.tensor_of(np.arange(6, dtype=np.float32).reshape(2, 3))
    other = tensor_files.tensor_of(np.arange(3, dtype=np.int64))
    return [tensor_files.write({"a": one}), tensor_files.write({"a": one, "b": other})]


@functools.cache
def pictures() -> list[bytes]:
    """A small picture in each format that is taken."""
    found = []
    for name in ("PNG", "JPEG", "WEBP", "GIF"):
        file = io.BytesIO()
        Image.effect_noise((8, 8), 50).convert("RGB").save(file, name)
        found.append(file.getvalue())
    return found


def videos() -> list[bytes]:
    """A small video in each format that is taken."""
    noise = np.random.default_rng(0).random((1, 3, 16, 16, 3), np.float32)
    own = [encoding.encode_outputs({"videos": noise}, name, 16)[0].data for name in ("mp4", "gif")]
    names = ("vp8.webm", "vp9.webm", "transparent.webm", "lossless.mkv", "uneven.mp4", "animated.png", "animated.webp")
    return own + [(MEDIA / name).read_bytes() for name in names]


def sounds() -> list[bytes]:
    """A short sound in each format that is taken."""
    names = ("sound.flac", "sound.mp3", "sound.ogg", "sound.opus", "sound.m4a", "sound.aac", "with-sound.webm")
    return [(MEDIA / name).read_bytes() for name in ("sound.wav", *names)]


def _filled(cls: Any, count: int) -> list[bytes]:
    nasty = Nasty(random.Random(cls.__name__))
    filled = [nasty.fill(cls()).SerializeToString() for _ in range(3 * count)]
    return sorted(filled, key=len)[:count]
