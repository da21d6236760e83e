"""What a client makes of the files that it is given: paths, URLs, folders of frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from triptych.errors import InvalidRequest
from triptych_client.media_files import path_or_url
from triptych_client.request import build_request

FRAMES = Path(__file__).parents[1] / "media" / "decoding" / "media"
NAMES = ("frame-1.png", "frame-2.png", "frame-10.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in reversed(NAMES):
        shutil.copy(FRAMES / name, tmp_path)
    (tmp_path / ".hidden").touch()
    return tmp_path


def test_a_folder_stands_for_its_pictures_in_the_order_of_their_numbers(folder: Path) -> None:
    request = build_request(media={"video": folder})
    assert [media.name for media in request.media] == ["video"] * 3
    assert [media.data for media in request.media] == [(FRAMES / name).read_bytes() for name in NAMES]


@pytest.mark.parametrize(
    ("name", "said"),
    [("cover.png", "it has cover.png"), ("other-2.png", "of which no two have one number")],
)
def test_a_folder_whose_order_would_be_a_guess_is_refused(folder: Path, name: str, said: str) -> None:
    shutil.copy(FRAMES / NAMES[0], folder / name)
    with pytest.raises(InvalidRequest, match=rf"^media.video is .*{said}"):
        build_request(media={"video": folder})


def test_an_empty_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"^media.video is .*it has nothing"):
        build_request(media={"video": tmp_path})
    with pytest.raises(InvalidRequest, match=r"^media.image is .*a readable file"):
        build_request(media={"image": tmp_path / "none.png"})


def test_a_url_is_sent_as_one() -> None:
    url = "https://example.org/cat.png"
    assert path_or_url(url) == url
    assert path_or_url("cat.png") == Path("cat.png")
    (media,) = build_request(media={"image": path_or_url(url)}).media
    assert (media.url, media.data) == (url, b"")
