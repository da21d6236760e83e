"""Python values, and flags, as a request's inputs."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media import tensor_files
from triptych.model import trees
from triptych.v1.job_pb2 import Media, TensorFile
from triptych_client.input_flags import values_of
from triptych_client.request import build_request


@dataclasses.dataclass
class Condition:
    frames: Any
    index: int = 0


class Point(NamedTuple):
    x: float
    y: float


def sent(**inputs: Any) -> dict[str, Any]:
    """What a request holds of inputs, in Python again."""
    return trees.gather(build_request(inputs=inputs)).values


def test_plain_values_stay_what_they_are() -> None:
    value = {"a": [1, -(2**63), 1.0, True, None, "text", (), {}], "b": Point(0.5, 1.0)}
    assert sent(x=value)["x"] == {
        **value,
        "a": [1, -(2**63), 1.0, True, None, "text", [], {}],
        "b": {"x": 0.5, "y": 1.0},
    }
    assert [type(one) for one in sent(x=[1, 1.0, True])["x"]] == [int, float, bool]


def test_files_pictures_and_objects(tmp_path: Path) -> None:
    picture = Image.effect_noise((5, 4), 50)
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "b.safetensors").write_bytes(b"tensor")
    got = sent(x=[Condition(picture, 3), Condition(tmp_path / "a.mp4"), b"raw", tmp_path / "b.safetensors"])["x"]
    assert Image.open(io.BytesIO(got[0]["frames"].data)).tobytes() == picture.tobytes()
    assert got[0]["index"] == 3
    assert got[1]["frames"] == Media(data=b"video")
    assert got[2:] == [Media(data=b"raw"), TensorFile(data=b"tensor")]
    upload = Media(upload_id="0" * 32)
    assert sent(x=[upload])["x"] == [upload]


def test_arrays() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    (tensor,) = tensor_files.read(sent(x=array)["x"].data).values()
    assert (tensor.dtype, tensor.shape) == ("F32", (3, 2))
    assert np.array_equal(np.frombuffer(tensor.data, "<f4").reshape(3, 2), array)
    with pytest.raises(InvalidRequest, match=r"inputs\.x\[0\] is 'the dtype complex128'; accepted: a tensor of"):
        sent(x=[np.zeros(1, complex)])


def test_tensors_of_torch() -> None:
    import torch

    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.int64, torch.bool):
        value = torch.tensor([[1, 0], [3, 4]]).to(dtype).T
        (tensor,) = tensor_files.read(sent(x=value)["x"].data).values()
        back = torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(tensor.shape)
        assert torch.equal(back, value)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (object(), r"inputs\.x is 'object'; accepted: None, bool"),
        ([{"a": {1: 2}}], r"inputs\.x\[0\]\.a key is 1; accepted: text"),
        ([2**63], r"inputs\.x\[0\] is 9223372036854775808"),
        (["\ud800"], r"inputs\.x\[0\] is"),
        (Path("/nowhere"), r"inputs\.x is '/nowhere'; accepted: a readable file"),
    ],
)
def test_each_value_that_cannot_be_sent(value: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        build_request(inputs={"x": value})


@pytest.mark.parametrize("seed", [True, 1.0, 2**63])
def test_each_bad_seed(seed: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"seeds\[1\] is"):
        build_request(seeds=[0, seed])


def test_flags_lead_into_lists_and_objects(tmp_path: Path) -> None:
    file = tmp_path / "b.safetensors"
    file.write_bytes(b"tensors")
    flags = [
        "a=3",
        "scheduler.flow_shift=5",
        "c[1].frames=@x.png",
        "c[0][frames]=@y.png",
        "c[0].deep.er[0]=null",
        f"d=@{file}#t",
    ]
    assert values_of(flags) == {
        "a": 3,
        "scheduler.flow_shift": 5,
        "c": [{"frames": Path("y.png"), "deep": {"er": [None]}}, {"frames": Path("x.png")}],
        "d": TensorFile(data=b"tensors", tensor="t"),
    }


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["a"], "input is 'a'; accepted: NAME=JSON"),
        (["=1"], "input is '=1'"),
        (["a[=1"], "accepted: NAME=JSON"),
        (["a[]=1"], "accepted: NAME=JSON"),
        (["a=text"], "input a is 'text'; accepted: JSON"),
        (["a=NaN"], "input a is 'NaN'; accepted: JSON"),
        (["a=1", "a=2"], "input is 'a'; accepted: a place that no other flag gives"),
        (["a=1", "a[0]=2"], "accepted: a place that no other flag gives"),
        (["a[1]=2"], r"input is 'a\[1\]'; accepted: indices from 0 on"),
        (["a=@/nowhere.safetensors#x"], "input a is '/nowhere.safetensors'; accepted: a readable file"),
    ],
)
def test_each_bad_flag(flags: list[str], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        values_of(flags)
