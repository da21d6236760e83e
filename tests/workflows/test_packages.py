"""A package that isn't installed, or can't be imported, is one sentence at the start: with its name, from any role."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch

from tests.families import without
from triptych.errors import InvalidRequest
from triptych.roles import ROLES
from triptych.stages.digests import software
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole

Outcomes = list[tuple[str, str]]
BROKEN = "operator torchvision::nms does not exist"
"""What versions of torchvision and torch that don't fit each other say."""


def started(folder: Path, packages: tuple[str, ...], models: list[str]) -> Outcomes:
    """How the models' starts go in a process without packages."""
    done = without.run(folder, packages, "-m", "tests.families.start", *models)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


@pytest.mark.parametrize(
    ("package", "needing", "others"),
    [
        ("torchvision", ("qwenimage-edit", "flux2", "anima", "wan-i2v"), ("wan", "qwenimage")),
        ("ftfy", ("wan", "helios"), ("qwenimage",)),
    ],
)
def test_who_needs_a_missing_package_says_so(
    package: str,
    needing: tuple[str, ...],
    others: tuple[str, ...],
    tmp_path: Path,
    family_folder: Callable[[str], str],
) -> None:
    """Of those that need torchvision two load a class that needs it, one has it in a model, one in a block."""
    models = [family_folder(family) for family in (*needing, *others)]
    outcomes = started(tmp_path / "packages", (package,), models)
    assert [kind for kind, _ in outcomes] == ["MissingExtra"] * len(needing) + [""] * len(others)
    for _, sentence in outcomes[: len(needing)]:
        assert f"needs the package {package!r}: pip install" in sentence
        assert "\n" not in sentence


@pytest.mark.parametrize("package", ["accelerate", "safetensors"])
def test_without_what_every_model_needs_nothing_starts(
    package: str, tmp_path: Path, family_folder: Callable[[str], str]
) -> None:
    ((kind, sentence),) = started(tmp_path / "packages", (package,), [family_folder("wan")])
    assert (kind, sentence) == (
        "MissingExtra",
        f"running a stage needs the package {package!r}: pip install 'triptych[serve]'",
    )


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path, family_folder: Callable[[str], str]) -> None:
    folder = tmp_path / "packages"
    environment = without.without(folder, "torchvision")
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(f"raise RuntimeError({BROKEN!r})\n")
    description = folder / "torchvision-0.1.dist-info"
    description.mkdir()
    (description / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    command = [sys.executable, "-S", "-m", "tests.families.start", family_folder("qwenimage-edit")]
    done = without.run_in(environment, command)
    kind, sentence = json.loads(done.stdout.splitlines()[-1])
    assert kind == "MissingExtra"
    assert "needs the package 'torchvision'" in sentence
    assert sentence.endswith(f"it can't be imported: {BROKEN}")


def test_the_command_says_it_in_one_line(tmp_path: Path, family_folder: Callable[[str], str]) -> None:
    arguments = ("-m", "triptych_client.cli", "generate", "a cat", "--fused", "--model", family_folder("wan"))
    done = without.run(tmp_path / "packages", ("ftfy",), *arguments, "-o", str(tmp_path / "out.mp4"))
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "ftfy" in line]
    assert line.startswith("triptych: the encoder of ")
    assert "needs the package 'ftfy': pip install 'triptych[serve]'" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("package", ["torchvision", "ftfy", "jinja2"])
def test_a_package_that_is_missing_makes_other_software(package: str, tmp_path: Path) -> None:
    program = "import json; from triptych.stages.digests import software; print(json.dumps(dict(software())))"
    done = without.run(tmp_path / "packages", (package,), "-c", program)
    assert json.loads(done.stdout) == {**software(), package: ""}
    assert software()[package]


def test_a_package_that_is_used_where_it_is_installed_makes_other_software(tmp_path: Path) -> None:
    """For example kernels that Qwen3.5 takes instead of its own code."""
    environment = without.without(tmp_path / "packages")
    description = tmp_path / "packages" / "flash_linear_attention-0.1.dist-info"
    description.mkdir()
    (description / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-linear-attention\nVersion: 0.1\n")
    program = "from triptych.stages.digests import software; print(software().get('flash-linear-attention'))"
    done = without.run_in(environment, [sys.executable, "-S", "-c", program])
    assert done.stdout.strip() == "0.1"


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is not None, reason="torchaudio is installed")
def test_a_package_that_only_some_jobs_need_is_named_to_these(family_folder: Callable[[str], str]) -> None:
    """The family starts without it, and a job that asks for more is refused once, as all workers would refuse it."""
    encoder = Stage.load(Whole.open(family_folder("echo")), ROLES[0])
    inputs = {
        "prompt": "a",
        "sigmas": [1.0, 0.0],
        "memory_images": [PIL.Image.new("RGB", (64, 32))],
        "memory_audio_waveforms": [torch.zeros(1, 4096)],
        "height": 32,
        "width": 64,
    }
    with pytest.raises(InvalidRequest, match="needs the package 'torchaudio': pip install torchaudio"):
        encoder.run(inputs, lambda _: None, lambda: False)
