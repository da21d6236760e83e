"""Inputs as trees: what is said by which field, bounds, files at leaves, and that every tree survives."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media import tensor_files
from triptych.media.decoding.headers import VIDEO, File
from triptych.media.tensor_files import Tensor
from triptych.model import trees
from triptych.model.inputs import SETTINGS, resolve
from triptych.v1 import model_pb2 as m
from triptych.v1.job_pb2 import GenerationRequest, InputValue, Media, TensorFile

NAMES = st.text(max_size=6)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
)
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)


def tree(value: Any) -> InputValue:
    """The message of a Python value, written here by hand and not by the client."""
    found = InputValue()
    if value is None:
        found.null_value = 0  # type: ignore[assignment]
    elif isinstance(value, bool):
        found.bool_value = value
    elif isinstance(value, int):
        found.int_value = value
    elif isinstance(value, float):
        found.number_value = value
    elif isinstance(value, str):
        found.string_value = value
    elif isinstance(value, list):
        found.list_value.SetInParent()
        found.list_value.items.extend(map(tree, value))
    elif isinstance(value, dict):
        found.map_value.SetInParent()
        for name, one in value.items():
            found.map_value.fields[name].CopyFrom(tree(one))
    elif isinstance(value, Media):
        found.media.CopyFrom(value)
    else:
        found.tensor.CopyFrom(value)
    return found


def asked(prompt: str = "a", /, **inputs: Any) -> GenerationRequest:
    request = GenerationRequest(prompt=prompt)
    for name, value in inputs.items():
        request.inputs[name.replace("__", ".")].CopyFrom(tree(value))
    return request


def png(size: tuple[int, int] = (4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def safetensors(dtype: str = "<f4", **tensors: Any) -> bytes:
    return tensor_files.write({name: tensor_files.tensor_of(np.array(one, dtype)) for name, one in tensors.items()})


IMAGE = m.INPUT_KIND_IMAGE
OBJECT_FIELDS = [
    m.InputDescription(
        name="image", kind=m.INPUT_KIND_IMAGE, item_kinds=[m.INPUT_KIND_IMAGE, m.INPUT_KIND_VIDEO], required=True
    ),
    m.InputDescription(name="strength", kind=m.INPUT_KIND_NUMBER, default_json="1.0", type_hint="float"),
]
MODEL = m.ModelDescription(
    inputs=[
        m.InputDescription(name="prompt", kind=m.INPUT_KIND_TEXT, arity=m.INPUT_ARITY_ONE_OR_LIST),
        m.InputDescription(name="height", kind=m.INPUT_KIND_INTEGER),
        m.InputDescription(name="generator", kind=m.INPUT_KIND_INTERNAL, not_given_reason="nothing; seeds make it"),
        m.InputDescription(name="num_images_per_prompt", kind=m.INPUT_KIND_INTEGER),
        m.InputDescription(name="anything"),
        m.InputDescription(name="scale", kind=m.INPUT_KIND_NUMBER, type_hint="float"),
        m.InputDescription(name="image", kind=m.INPUT_KIND_IMAGE),
        m.InputDescription(name="reference_images", kind=m.INPUT_KIND_IMAGE, arity=m.INPUT_ARITY_LIST),
        m.InputDescription(name="video", kind=m.INPUT_KIND_VIDEO),
        m.InputDescription(name="control_videos", kind=m.INPUT_KIND_MAPPING, item_kinds=[m.INPUT_KIND_VIDEO]),
        m.InputDescription(name="conditions", kind=m.INPUT_KIND_OBJECT, arity=m.INPUT_ARITY_LIST, fields=OBJECT_FIELDS),
        m.InputDescription(name="latents", kind=m.INPUT_KIND_TENSOR, tensor_dtypes=["F32"], tensor_shape=["1", "n"]),
    ]
)


@given(TREES)
def test_every_tree_survives(value: Any) -> None:
    """Over the wire, as JSON, and to the pipeline, where numbers of a Struct would have become doubles."""
    request = asked(anything=value)
    request = json_format.Parse(json_format.MessageToJson(request), GenerationRequest())
    request = GenerationRequest.FromString(request.SerializeToString())
    got = resolve(request, MODEL).for_encoder()["anything"]
    assert json.dumps(got, sort_keys=True) == json.dumps(_whole(value), sort_keys=True), "1 is not True, nor 1.0"


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return {name: _whole(one) for name, one in value.items()} if isinstance(value, dict) else value


def test_pictures_inside_objects_and_lists_are_put_back_where_they_were() -> None:
    first, second = Media(data=png((4, 4))), Media(data=png((6, 6)))
    request = asked(
        conditions=[{"image": first, "strength": 0.5}, {"image": [first, second]}], reference_images=[second]
    )
    request.inputs["conditions"].list_value.items[1].map_value.fields["image"].CopyFrom(tree(second))
    values: Any = resolve(request, MODEL).for_encoder()
    assert [one["image"].size for one in values["conditions"]] == [(4, 4), (6, 6)]
    assert values["conditions"][0]["strength"] == 0.5
    assert [one.size for one in values["reference_images"]] == [(6, 6)], "a list of one stays a list"


def test_a_list_of_one_stays_a_list_in_the_short_form_too() -> None:
    request = GenerationRequest(prompt="a", media=[Media(name="reference_images", data=png())])
    values: Any = resolve(request, MODEL).for_encoder()
    assert isinstance(values["reference_images"], list)


def test_a_list_of_pictures_is_a_video() -> None:
    frames = [Media(data=png()), Media(data=png())]
    request = asked(video=frames, control_videos={"edge": frames})
    values: Any = resolve(request, MODEL).for_encoder()
    assert [one.size for one in values["video"]] == [(4, 4)] * 2
    assert len(values["control_videos"]["edge"]) == 2


def test_files_are_told_apart_by_what_the_input_takes_and_what_they_are() -> None:
    gif = b"GIF89a" + bytes(20)
    assert files(asked(image=Media(data=gif)))["image"] != VIDEO
    found = files(asked(conditions=[{"image": Media(data=gif)}]))
    assert found == {"conditions[0].image": VIDEO}
    with pytest.raises(InvalidRequest, match=r"^inputs\.image\.kind is 'video'; accepted: image"):
        resolve(asked(image=Media(data=png(), kind="MEDIA_KIND_VIDEO")), MODEL)


def files(request: GenerationRequest) -> dict[str, str]:
    found: tuple[File, ...] = resolve(request, MODEL).files
    assert all(file.place == f"inputs.{file.name}" for file in found)
    return {file.name: file.kind for file in found}


def test_a_tensor_comes_as_it_is() -> None:
    data = safetensors(a=[[1, 2, 3]], b=[[4, 5]])
    values: Any = resolve(asked(latents=TensorFile(data=data, tensor="b")), MODEL).for_encoder()
    assert values["latents"] == Tensor("F32", (1, 2), np.array([4, 5], "<f4").tobytes())


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (TensorFile(), r"inputs\.latents is '0 bytes'; accepted: the bytes of a safetensors file"),
        (TensorFile(data=b"\x80\x04pickle..........."), r"inputs\.latents is '19 bytes'"),
        (TensorFile(data=safetensors(a=[[1]])[:-1]), "not those from 0 to 4"),
        (TensorFile(data=safetensors(a=[[1]]) + b"x"), "1 bytes that belong to no tensor"),
        (
            TensorFile(data=safetensors(a=[[1]], b=[[1]])),
            r"latents\.tensor is ''.*one of the file's 2 tensors: a, b",
        ),
        (TensorFile(data=safetensors(a=[[1]]), tensor="c"), r"inputs\.latents\.tensor is 'c'"),
        (TensorFile(data=safetensors("<f2", a=[[1]])), r"F16 of shape \[1, 1\].*accepted: the dtype F32"),
        (TensorFile(data=safetensors(a=[1])), r"F32 of shape \[1\].*accepted: the shape \[1, n\]"),
        (TensorFile(data=safetensors(a=[[1], [2]])), r"accepted: the shape \[1, n\]"),
        (TensorFile(data=safetensors(a=[[np.nan]])), "with NaN or infinity"),
        (TensorFile(data=safetensors(a=[[-np.inf]])), "with NaN or infinity"),
    ],
)
def test_each_bad_tensor(file: TensorFile, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        resolve(asked(latents=file), MODEL)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"conditions": {"image": Media(data=b"x")}}, r"^inputs\.conditions is .*accepted: a list"),
        ({"conditions": [{}]}, r"^inputs\.conditions\[0\]\.image is None; accepted: a picture"),
        ({"conditions": [{"image": 3}]}, r"^inputs\.conditions\[0\]\.image is 3; accepted: a picture"),
        (
            {"conditions": [{"image": Media(data=b"x"), "index": 1}]},
            r"^inputs\.conditions\[0\]\.index is 1; accepted: ",
        ),
        ({"conditions": [{"image": Media()}]}, r"^inputs\.conditions\[0\]\.image is b''; accepted: the bytes"),
        ({"conditions": [{"image": Media(name="x", data=b"x")}]}, r"^inputs\.conditions\[0\]\.image\.name is 'x'"),
        (
            {"conditions": [{"image": Media(data=b"x"), "strength": "much"}]},
            r"\[0\]\.strength is 'much'; accepted: a finite",
        ),
        ({"latents": [1.0]}, r"^inputs\.latents is \[1\]; accepted: a tensor"),
        ({"scale": TensorFile(data=b"x")}, r"^inputs\.scale is 'a tensor'; accepted: a finite number"),
        ({"height": Media(data=b"x")}, r"^inputs\.height is 'a file'; accepted: a whole number"),
        ({"height": "tall"}, r"^inputs\.height is 'tall'; accepted: a whole number"),
        ({"height": 9000}, r"^inputs\.height is 9000; accepted: 1 to 8192"),
        ({"generator": 3}, r"^inputs\.generator is 3; accepted: nothing; seeds make it"),
        ({"num_images_per_prompt": 2}, r"own field num_outputs"),
        ({"anything": {"a": [float("nan")]}}, r"^inputs\.anything\.a\[0\] is nan; accepted: finite"),
        ({"anithing": 1}, r"^inputs\.anithing is 1; accepted: anything"),
        ({"prompt": ["a", " "]}, r"^inputs\.prompt is ' '; accepted: text that is not empty"),
        ({"prompt": []}, r"^inputs\.prompt is '0 texts'; accepted: 1 to 16"),
    ],
)
def test_each_bad_tree(inputs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        resolve(asked("" if "prompt" in inputs else "a", **inputs), MODEL)


def test_what_is_given_twice_is_refused() -> None:
    sentence = r"^inputs\.{0} is 'a second value'; accepted: nothing; {1} gives this input already"
    with pytest.raises(InvalidRequest, match=sentence.format("prompt", "prompt")):
        resolve(asked("a", prompt="b"), MODEL)
    request = asked(scale=1.0)
    request.parameters.update({"scale": 2})
    with pytest.raises(InvalidRequest, match=sentence.format("scale", r"parameters\.scale")):
        resolve(request, MODEL)
    request = asked(image=Media(data=png()))
    request.media.add(name="image", data=png())
    with pytest.raises(InvalidRequest, match=sentence.format("image", r"media\.image")):
        resolve(request, MODEL)


def test_several_prompts_count_as_results() -> None:
    request = asked("", prompt=["a", "b", "c"])
    inputs = resolve(request, MODEL)
    assert inputs.values["prompt"] == ["a", "b", "c"]
    assert inputs.work["num_outputs"] == 3
    request.num_outputs = 2
    assert resolve(request, MODEL).work["num_outputs"] == 6
    request.num_outputs = 6
    with pytest.raises(InvalidRequest, match="num_outputs is '6 for each of 3 prompts'; accepted: at most 16"):
        resolve(request, MODEL)


def test_each_result_has_its_seed() -> None:
    request = asked("", prompt=["a", "b"])
    request.seeds.extend([5, -7])
    settings: Any = resolve(request, MODEL).for_encoder()[SETTINGS]
    assert (settings["seed"], settings["seeds"]) == (5, [5, -7])
    request.num_outputs = 2
    with pytest.raises(InvalidRequest, match="seeds is '2 seeds'; accepted: 4: one for each result"):
        resolve(request, MODEL)
    request.num_outputs = 1
    request.seed = 5
    with pytest.raises(InvalidRequest, match="seed is 5; accepted: nothing beside seeds"):
        resolve(request, MODEL)


def test_trees_are_bounded() -> None:
    deep: Any = 1
    for _ in range(trees.INPUTS_DEPTH_MAX):
        deep = {"a": deep}
    for value, sentence in (
        (deep, r"inputs\.anything(\.a){16} is 'nested 17 deep or more'"),
        ([0] * trees.INPUTS_VALUES_MAX, r"^inputs is '10001 values or more'"),
        ([Media(data=b"x")] * 65, r"^media is '65 files or more'"),
        ("x" * (2**16 + 1), r"^inputs\.anything is '65537 bytes'"),
        ({"x" * 257: 1}, r"^inputs is 'a name of 257 characters'"),
        ({"x" * 200: {"y" * 50: Media(data=b"x")}}, r"a file 2\d\d characters deep"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            resolve(asked(anything=value), MODEL)


def test_the_fields_of_a_request_can_be_said_as_inputs() -> None:
    inputs = resolve(asked("", prompt="a", height=64), MODEL)
    assert inputs.values == {"prompt": "a", "height": 64}
    assert inputs.work["height"] == 64
