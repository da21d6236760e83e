"""Families that the code never names run by only naming their folder, to the bit."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.e2e import reference
from tests.e2e.conftest import generate, job_count, worker_of
from tests.fleet.processes import Fleet
from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED
from triptych_client import Client
from triptych_client.job_states import cut_sentences

ROOT = Path(__file__).parent.parent.parent
SECRET = "zebracrossing"
FAMILIES = re.compile(
    r"(?<!allo)wan(?!t)|qwen|sd_?3|sdxl|stable_?diffusion|ltx|flux|hunyuan|cosmos|helios|lumina|chroma(?!ticit)|kandinsky|mochi|umt5|"
    r"unipc|cog_?video",
    re.IGNORECASE,
)
"""Names of model families, and of parts that only some families have."""


def test_text_to_image(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    folder, fields = model_folder("sd3"), {"guidance_scale": 5.0}
    with Fleet(tmp_path / "fleet", folder) as fleet, fleet.client() as client:
        ours = generate(client, tmp_path, **fields)
        assert set(worker_of(fleet, "transformer-0").info.component_bytes) == {"transformer"}
        assert_no_library_logs_the_prompt(fleet, client)
    assert ours.shape == (32, 64, 3)
    assert np.array_equal(ours, reference.fused(folder, **fields))
    assert np.array_equal(ours, reference.modular(folder, "images", 5.0))


def test_a_fleet_of_one_workflow_loads_less_and_says_what_it_serves(
    tmp_path: Path, model_folder: Callable[[str], str]
) -> None:
    folder, fields = model_folder("sd3"), {"guidance_scale": 5.0}
    only = ("--workflows", "text2image")
    with Fleet(tmp_path / "fleet", folder, worker_flags=only) as fleet, fleet.client() as client:
        assert "vae" not in worker_of(fleet, "encoder-0").info.component_bytes
        assert {one.name for one in client.describe_model().workflows if one.is_served} == {"text2image"}
        assert np.array_equal(generate(client, tmp_path, **fields), reference.fused(folder, **fields))
        before = job_count(fleet)
        with pytest.raises(InvalidRequest, match=r"workflow image2image'; accepted: .* has loaded: text2image$"):
            client.create_job("a cat", media={"image": png(picture())})
        assert job_count(fleet) == before


def assert_no_library_logs_the_prompt(fleet: Fleet, client: Client) -> None:
    """These text encoders cut long prompts, and diffusers would warn of it by quoting what was cut off."""
    job = client.create_job("word " * 200 + SECRET, height=32, width=64, num_inference_steps=1)
    for update in client.watch_job(job.job_id, timeout_s=120):
        job = update.job
    assert job.state == JOB_STATE_SUCCEEDED, job.error
    cut = {(one.input, one.tokenizer): one.token_count for one in job.tokens_cut}
    assert cut.keys() == {("prompt", name) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")}
    assert all(
        f"cut off the last {cut['prompt', one.tokenizer]} tokens" in text
        for one, text in zip(job.tokens_cut, cut_sentences(job), strict=True)
    )
    for name in fleet.processes:
        assert SECRET not in fleet.log(name), name


@pytest.fixture(scope="module")
def image_fleet(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[Fleet]:
    """A fleet over a model that takes a picture."""
    with Fleet(tmp_path_factory.mktemp("fleet"), model_folder("ltx_image")) as fleet:
        yield fleet


def test_image_to_video(image_fleet: Fleet, tmp_path: Path) -> None:
    """The encoder draws from the job's generator for the picture, the transformer goes on where it stopped."""
    folder, fields = image_fleet.model, {"num_frames": 5, "guidance_scale": 3.0}
    image = picture()
    media = {"image": png(image)}
    with image_fleet.client() as client:
        ours = generate(client, tmp_path, media=media, **fields)
        without = generate(client, tmp_path, **fields)
    assert ours.shape == (5, 32, 64, 3)
    assert np.array_equal(ours, reference.fused(folder, media=media, **fields))
    assert np.array_equal(ours, reference.modular(folder, "videos", 3.0, num_frames=5, image=image))
    assert not np.array_equal(ours, without), "the picture made no difference"


def test_a_component_of_two_roles_waits_in_the_first_until_a_job_uses_it(tmp_path: Path, image_fleet: Fleet) -> None:
    """A job with a picture has used it by now, or does so here; what a worker holds, it tells when it registers."""
    assert set(worker_of(image_fleet, "transformer-0").info.component_bytes) == {"transformer"}
    assert set(worker_of(image_fleet, "decoder-0").info.component_bytes) == {"vae"}
    assert "vae, component" in image_fleet.log("encoder-0")
    with image_fleet.client() as client:
        generate(client, tmp_path, media={"image": png(picture())}, num_frames=5, guidance_scale=3.0)
    assert image_fleet.log("encoder-0").count("loading vae, because a job uses it") == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"not a picture", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(64), id="only a signature"),
        pytest.param("cut", id="cut short"),
    ],
)
def test_a_broken_image_is_refused_and_nothing_queued(data: bytes | str, image_fleet: Fleet) -> None:
    bad = png(picture())[:-200] if data == "cut" else data
    before = job_count(image_fleet)
    with image_fleet.client() as client, pytest.raises(InvalidRequest) as refused:
        client.create_job("a cat", media={"image": bad}, num_frames=5)
    assert refused.value.field == "media.image"
    assert f"{len(bad)} bytes" in str(refused.value)
    assert "PNG" in refused.value.accepted
    assert job_count(image_fleet) == before


def test_an_unknown_media_name_is_refused_with_the_known_ones(image_fleet: Fleet) -> None:
    before = job_count(image_fleet)
    with image_fleet.client() as client, pytest.raises(InvalidRequest, match=r"media.*'imagge'.*image"):
        client.create_job("a cat", media={"imagge": png(picture())}, num_frames=5)
    assert job_count(image_fleet) == before


@pytest.mark.parametrize("folder", ["triptych", "services", "clients"])
def test_no_code_names_a_family(folder: str) -> None:
    """No identifier, import or text of the code does. Comments and docstrings may, to say where a rule comes from."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if (ROOT / "triptych" / "v1") in path.parents:
            continue
        for line, word in words(ast.parse(path.read_text())):
            if FAMILIES.search(word):
                found.append(f"{path.relative_to(ROOT)}:{line}: {word!r}")
    assert found == []


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every identifier and text of a module, except docstrings (texts that stand alone as statements)."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in docstrings:
                yield line, node.value
            continue
        for name in ("id", "attr", "name", "arg", "module", "asname"):
            if isinstance(word := getattr(node, name, None), str):
                yield line, word


def picture(height: int = 32, width: int = 64) -> PIL.Image.Image:
    """A picture of noise."""
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: PIL.Image.Image) -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
