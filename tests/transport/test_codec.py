"""Values that cross come back equal, and a wrong manifest is SourceCorrupt."""

from __future__ import annotations

import dataclasses
import enum
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from diffusers.utils.outputs import BaseOutput
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.transport import codec, room, tensors
from triptych.v1 import room_pb2

DTYPES = sorted(
    {
        dtype
        for name in dir(torch)
        if isinstance(dtype := getattr(torch, name), torch.dtype) and not name.startswith("q")
    },
    key=str,
)
"""All of torch's dtypes but the quantized, which are more than their bytes."""


def cross(values: dict, device: str = "cpu") -> dict:
    """To a room's bytes and back."""
    encoded = codec.encode(values, "job")
    data = memoryview(bytearray(b"".join(room.lay_out(1, encoded.manifest, encoded.buffers)[0])))
    return codec.decode(room.parse(data, 1), data, device)


def assert_same(left: object, right: object) -> None:
    """Equal to the bit, in value and in type, layout included."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert (left.dtype, left.shape, left.stride()) == (right.dtype, right.shape, right.stride())
        elements = [
            tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
            for tensor in (left, right)
        ]
        assert torch.equal(*elements)
    elif isinstance(left, np.ndarray | np.generic):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
    elif isinstance(left, torch.Generator):
        assert torch.equal(left.get_state(), right.get_state())
    elif isinstance(left, Image.Image):
        assert (left.mode, left.size, left.tobytes()) == (right.mode, right.size, right.tobytes())
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, float | complex):
        assert repr(left) == repr(right)
    else:
        assert left == right


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.sampled_from(DTYPES),
    st.slices(10),
)
arrays = hnp.arrays(
    st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="="),
        hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    ),
    hnp.array_shapes(min_dims=0, min_side=0, max_dims=4),
)
values = st.recursive(
    st.one_of(scalars, arrays),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers(), st.booleans()), inner, max_size=4),
        st.frozensets(st.one_of(st.text(), st.integers()), max_size=4),
        st.sets(st.one_of(st.text(), st.integers()), max_size=4),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), values, max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_round_trip(state):
    assert_same(dict(sorted(state.items())), cross(state))


@given(st.data())
@settings(deadline=None)
def test_tensors_keep_dtype_shape_and_strides(data):
    dtype = data.draw(
        st.sampled_from([torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64])
    )
    shape = data.draw(st.lists(st.integers(0, 4), min_size=0, max_size=4))
    count = int(np.prod(shape)) * dtype.itemsize
    tensor = torch.arange(count).to(torch.uint8).bitwise_and(1).view(dtype).reshape(shape)
    for _step in range(data.draw(st.integers(0, 3))):
        if tensor.dim() == 0:
            break
        dim = data.draw(st.integers(0, tensor.dim() - 1))
        how = data.draw(st.sampled_from(["permute", "expand", "slice", "select", "unsqueeze", "window"]))
        if how == "permute":
            tensor = tensor.transpose(dim, data.draw(st.integers(0, tensor.dim() - 1)))
        elif how == "expand":
            tensor = tensor.unsqueeze(dim).expand(*tensor.shape[:dim], 3, *tensor.shape[dim:])
        elif how == "slice":
            tensor = tensor[(slice(None),) * dim + (slice(data.draw(st.integers(0, 2)), None, 2),)]
        elif how == "select" and tensor.shape[dim]:
            tensor = tensor.select(dim, data.draw(st.integers(0, tensor.shape[dim] - 1)))
        elif how == "window" and tensor.shape[dim] > 1:
            tensor = tensor.unfold(dim, 2, 1)
        else:
            tensor = tensor.unsqueeze(dim)
    assert_same(tensor, cross({"x": tensor})["x"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    raw = torch.randint(0, 256, (6 * dtype.itemsize,), dtype=torch.uint8)
    if dtype is torch.bool:
        raw &= 1
    back = cross({"x": raw.view(dtype).view(2, 3)})["x"]
    assert (back.dtype, back.shape) == (dtype, (2, 3))
    assert torch.equal(back.view(-1).view(torch.uint8), raw)


def test_special_values():
    generator = torch.Generator().manual_seed(5)
    torch.randn(3, generator=generator)
    state = {
        "conjugate": torch.randn(2, 3, dtype=torch.complex64).conj().T,
        "device": torch.device("cpu"),
        "enum": Image.Resampling.BICUBIC.__class__.__name__,
        "generator": generator,
        "image": Image.effect_noise((5, 3), 50).convert("RGB"),
        "image16": Image.new("I;16", (3, 2), 700),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "negated": torch.randn(3, dtype=torch.complex64).conj().imag,
        "no_pixels": Image.new("RGB", (0, 4)),
        "output": BaseModelOutputWithPooling(last_hidden_state=torch.ones(1, 2), hidden_states=(torch.ones(1),)),
        "sample": DecoderOutput(sample=torch.ones(2)),
        "scalar": np.float16(1.5),
        "size": torch.Size([2, 3]),
        "transposed": np.arange(6, dtype=np.int16).reshape(2, 3).T,
    }
    back = cross(state)
    for name in set(state) - {"output", "sample", "conjugate", "negated"}:
        assert_same(state[name], back[name])
    assert torch.equal(back["conjugate"], state["conjugate"])
    assert back["conjugate"].stride() == state["conjugate"].stride()
    assert torch.equal(back["negated"], state["negated"])
    assert torch.equal(torch.randn(4, generator=back["generator"]), torch.randn(4, generator=generator))
    assert back["transposed"].strides == state["transposed"].strides
    assert type(back["output"]) is BaseModelOutputWithPooling
    assert list(back["output"]) == ["last_hidden_state", "hidden_states"]
    assert back["output"].pooler_output is None
    assert isinstance(back["sample"], BaseOutput)


def test_enumeration_of_diffusers():
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

    assert (
        cross({"x": KarrasDiffusionSchedulers.LMSDiscreteScheduler})["x"]
        is KarrasDiffusionSchedulers.LMSDiscreteScheduler
    )


def test_dense_tensors_are_not_copied():
    tensor, array = torch.randn(4, 5).T, np.zeros((3, 4))
    encoded = codec.encode({"a": tensor, "b": array}, "job")
    addresses = [np.frombuffer(buffer, np.uint8).ctypes.data for buffer in encoded.buffers]
    assert addresses == [tensor.data_ptr(), array.ctypes.data]


def test_gaps_carry_nothing():
    secret = torch.full((4, 4), 7, dtype=torch.uint8)
    secret[:, 0] = 1
    encoded = codec.encode({"x": secret[:, 0]}, "job")
    assert set(bytes(encoded.buffers[0])) == {0, 1}


def test_expanded_tensors_send_each_element_once():
    encoded = codec.encode({"x": torch.ones(3).expand(1000, 3)}, "job")
    assert encoded.buffers[0].nbytes == 12


def test_decoded_values_are_writable_and_apart():
    encoded = codec.encode({"a": torch.zeros(10), "b": np.zeros(10)}, "job")
    data = b"".join(room.lay_out(1, encoded.manifest, encoded.buffers)[0])
    back = codec.decode(encoded.manifest, memoryview(data))
    back["a"] += 1
    back["b"] += 1
    assert (back["a"].sum(), back["b"].sum()) == (10, 10)
    again = codec.decode(encoded.manifest, memoryview(data))
    assert (again["a"].sum(), again["b"].sum()) == (0, 0)


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, object()]}, r"x\['a'\]\[1\]"),
        (Colour.RED, "x"),
        (Point(1), "x"),
        ((lambda: 1,), r"x\[0\]"),
        (torch.zeros(2, device="meta"), "x"),
        (torch.zeros(2, 2).to_sparse(), "x"),
        (np.array(["text"]), "x"),
        (np.zeros(2, ">f4"), "x"),
        (np.array([object()]), "x"),
        ({"big": 10**5000}, r"x\['big'\]"),
        ("\ud800", "x"),
        (slice("a", None), "x.start"),
        (Image.new("P", (2, 2)), "x.mode"),
        (bytearray(b"x"), "x"),
        (type("Sub", (dict,), {})(), "x"),
    ],
)
def test_what_cannot_cross_is_named(value, path):
    with pytest.raises(InvalidRequest, match=rf"^{path} is "):
        codec.encode({"x": value}, "job")


def nested(depth: int) -> object:
    value: object = 1
    for _level in range(depth):
        value = InputParam("x", default=value)
    return value


def test_depth_is_bounded():
    back = cross({"x": nested(codec.DEPTH_MAX)})["x"]
    for _level in range(codec.DEPTH_MAX):
        back = back.default
    assert back == 1
    with pytest.raises(InvalidRequest, match="nested"):
        codec.encode({"x": nested(codec.DEPTH_MAX + 1)}, "job")
    endless: list = []
    endless.append(endless)
    with pytest.raises(InvalidRequest, match="nested"):
        codec.encode({"x": endless}, "job")


def manifest_of(**fields: object) -> room_pb2.Manifest:
    """One float32 tensor of 2 × 3 at 64, unless `fields` say otherwise."""
    manifest = room_pb2.Manifest()
    manifest.values["x"].tensor = 0
    plain = {"name": "x", "dtype": "float32", "shape": [2, 3], "strides": [3, 1], "offset_bytes": 64, "size_bytes": 24}
    manifest.tensors.add(**{**plain, **fields})
    return manifest


ROOM = memoryview(bytearray(128))


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float33"},
        {"dtype": "nn"},
        {"dtype": "qint8", "size_bytes": 6},
        {"offset_bytes": 128},
        {"offset_bytes": 65},
        {"offset_bytes": 2**64 - 64},
        {"size_bytes": 23},
        {"size_bytes": 2**63},
        {"shape": [2]},
        {"shape": [-2, 3]},
        {"strides": [-3, 1]},
        {"strides": [2**62, 1]},
        {"shape": [2**62, 2**62], "strides": [0, 0], "size_bytes": 4},
        {"shape": [0, 2**62, 2**62], "strides": [1, 1, 1], "size_bytes": 0},
        {"shape": [1] * 65, "strides": [1] * 65, "size_bytes": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_wrong_tensor_reference(kind, fields):
    manifest = manifest_of(**fields)
    setattr(manifest.values["x"], kind, 0)
    with pytest.raises(SourceCorrupt):
        codec.decode(manifest, ROOM)


def value(**kind: object) -> room_pb2.Value:
    return room_pb2.Value(**kind)


@pytest.mark.parametrize(
    "wrong",
    [
        value(),
        value(tensor=1),
        value(big_integer="1" * 5000),
        value(big_integer="x"),
        value(dtype="nn"),
        value(dtype="nonsense"),
        value(device="nonsense:1"),
        value(device="cpu:" + "9" * 50),
        value(mapping=room_pb2.Mapping(keys=[value(integer=1)])),
        value(mapping=room_pb2.Mapping(keys=[value(list=room_pb2.Sequence())], values=[value(integer=1)])),
        value(set=room_pb2.Sequence(items=[value(list=room_pb2.Sequence())])),
        value(image=room_pb2.Image(mode="RGB", width=2**31, height=2**31, pixels=0)),
        value(image=room_pb2.Image(mode="P", width=2, height=3, pixels=0)),
        value(generator=room_pb2.Generator(device="cpu", state=0)),
        value(generator=room_pb2.Generator(device="cuda", state=0)),
        value(dataclass=room_pb2.Dataclass(module="subprocess", name="Popen")),
        value(dataclass=room_pb2.Dataclass(module="diffusers.nothing", name="Here")),
        value(dataclass=room_pb2.Dataclass(module="diffusers", name="nothing")),
        value(dataclass=room_pb2.Dataclass(module="diffusers.utils.outputs", name="BaseOutput.__init__")),
        value(dataclass=room_pb2.Dataclass(module="transformers.training_args", name="TrainingArguments")),
        value(dataclass=room_pb2.Dataclass(module="", name="")),
        value(
            model_output=room_pb2.Dataclass(
                module=DecoderOutput.__module__, name="DecoderOutput", fields={"y": value(integer=1)}
            )
        ),
        value(enum_member=room_pb2.EnumMember(module="signal", name="Signals", member="SIGKILL")),
        value(
            enum_member=room_pb2.EnumMember(
                module="diffusers.schedulers.scheduling_utils", name="KarrasDiffusionSchedulers", member="no"
            )
        ),
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_wrong_value(wrong):
    manifest = manifest_of()
    manifest.values["x"].CopyFrom(wrong)
    with pytest.raises(SourceCorrupt, match=r"x"):
        codec.decode(manifest, ROOM)


def test_the_name_of_a_dtype_imports_nothing():
    script = (
        "import sys, torch; from triptych.transport import codec; from triptych.errors import SourceCorrupt\n"
        "from triptych.v1 import room_pb2\n"
        "before = set(sys.modules)\n"
        "for value in (room_pb2.Value(dtype='_inductor'), room_pb2.Value(tensor=0)):\n"
        "    manifest = room_pb2.Manifest(values={'x': value})\n"
        "    manifest.tensors.add(dtype='_inductor', size_bytes=4, shape=[1], strides=[1])\n"
        "    try: codec.decode(manifest, memoryview(bytearray(64)))\n"
        "    except SourceCorrupt: continue\n"
        "sys.exit('torch._inductor' in set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, timeout=120)
    assert done.returncode == 0


def test_a_key_that_cannot_be_shown():
    """A tensor can be a key, and torch can't print one of these."""
    manifest = manifest_of(dtype="uint4", shape=[1], strides=[1], size_bytes=1)
    manifest.values["x"].mapping.keys.add(tensor=0)
    manifest.values["x"].mapping.values.add(integer=1)
    (back,) = codec.decode(manifest, ROOM)["x"].items()
    assert (back[0].dtype, back[1]) == (torch.uint4, 1)


def sample_manifest() -> bytes:
    state = {
        "t": torch.randn(2, 3).T,
        "a": [np.arange(4), (1, {"k": Image.new("L", (2, 2)), 2: None})],
        "g": torch.Generator(),
        "o": DecoderOutput(sample=torch.ones(1)),
        "s": torch.Size([1]),
    }
    encoded = codec.encode(state, "job")
    room.lay_out(1, encoded.manifest, encoded.buffers)
    return encoded.manifest.SerializeToString(deterministic=True)


SAMPLE = sample_manifest()


@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(SAMPLE))
)
@settings(max_examples=400, deadline=None)
def test_mutated_manifests_are_values_or_corrupt(mutations, length):
    """Nothing else is raised, nothing crashes, and no memory is taken that the room doesn't have."""
    data = bytearray(SAMPLE)
    for position, byte in mutations:
        data[position] = byte
    tracemalloc.start()
    for whole in (data, data[:length]):
        try:
            codec.decode(room_pb2.Manifest.FromString(bytes(whole)), memoryview(bytearray(8192)))
        except (SourceCorrupt, DecodeError):
            continue
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**22


def test_devices_of_one_kind():
    assert tensors.reader_device("cuda", "cuda:3") == "cuda:3"
    assert tensors.reader_device("cuda", "cpu") == "cpu"
    assert tensors.reader_device("cpu", "cuda:3") == "cpu"
    manifest = manifest_of(device_type="cuda")
    manifest.values["d"].device = "cuda:1"
    back = codec.decode(manifest, ROOM)
    assert (back["x"].device, back["d"]) == (torch.device("cpu"), torch.device("cpu"))


def test_torch_is_not_imported_for_nothing():
    script = (
        "import sys, triptych.transport.codec as c; c.encode({'a': [1, 'b']}, 'j'); sys.exit('torch' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, timeout=60).returncode
        == 0
    )
