"""A clip as pictures: still or moving, an archive of its frames, or a small one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from triptych.errors import InvalidRequest
from triptych.media import animation
from triptych.media.animation import encoded
from triptych.media.clips import Clip
from triptych.media.decoding.pixels import over_white
from triptych.media.formats import FORMATS

GIF_TICK_S = 0.01
"""GIF counts time in hundredths. A frame lasts at least two: players take less for a mistake and slow down."""
THUMBNAIL_SIDE_PIXELS = 256
"""Longest side of a small picture: enough to recognise one among many."""
XMP_BYTES_MAX = 65_502
"""Most that one segment of a JPEG file holds of XMP (part 3 of its specification)."""
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""Of every file in an archive: the oldest that ZIP has, so that equal frames give equal archives."""
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li>'
    '</rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)
_STILLS: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"subsampling": 0},
    "webp": {"method": 4},
    "avif": {"subsampling": "4:4:4", "speed": 6, "max_threads": 1},
}
"""Pillow's options: full resolution of colours; a fixed number of threads, so that equal input gives equal bytes."""


def encode_still(clip: Clip, output_format: str, quality: int = 0, comment: str = "") -> bytes:
    """A picture as JPEG, WebP or AVIF; JPEG has white where a picture is transparent.

    Raises InvalidRequest for a comment that is too long for a JPEG.
    """
    scale = FORMATS[output_format].scale
    image = opaque_frames(clip)[0] if output_format == "jpeg" else clip.images()[0]
    options = {**_STILLS[output_format], **({"quality": scale.at(quality)} if scale else {})}
    if comment:
        xmp = _XMP.format(escape(comment)).encode()
        if output_format == "jpeg" and len(xmp) > XMP_BYTES_MAX:
            accepted = f"at most {XMP_BYTES_MAX} bytes in a JPEG: leave the prompt out, or take png"
            raise InvalidRequest("output.metadata", f"{len(xmp)} bytes", accepted)
        options["xmp"] = xmp
    return encoded(image, output_format.upper(), **options)


def encode_png(clip: Clip, frames_per_second: float, comment: str = "") -> bytes:
    """A PNG, animated for more than one frame."""
    images = clip.images()
    if len(images) > 1:
        return animation.apng(images, 1 / frames_per_second, comment)
    info = PngImagePlugin.PngInfo()
    if comment:
        info.add_itxt("Comment", comment)
    return encoded(images[0], "PNG", pnginfo=info)


def encode_gif(clip: Clip, frames_per_second: float, comment: str = "") -> bytes:
    """A looping GIF, with white where frames are transparent."""
    return animation.gif(opaque_frames(clip), max(2, round(1 / frames_per_second / GIF_TICK_S)), comment)


def encode_zip(clip: Clip, comment: str = "") -> bytes:
    """An archive of the frames as PNGs, `000000.png` first, and `metadata.json` where there is some."""
    files = {f"{index:06d}.png": encoded(image, "PNG") for index, image in enumerate(clip.images())}
    if comment:
        files["metadata.json"] = comment.encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), data)
    return file.getvalue()


def encode_thumbnail(clip: Clip, output_format: str) -> bytes:
    """The middle frame, made smaller where a side is longer than `THUMBNAIL_SIDE_PIXELS`."""
    image = opaque_frames(clip)[len(clip.frames_FHWC) // 2]
    image.thumbnail((THUMBNAIL_SIDE_PIXELS, THUMBNAIL_SIDE_PIXELS))
    return encoded(image, output_format.upper(), quality=80, **_STILLS[output_format])


def opaque_frames(clip: Clip) -> list[Image.Image]:
    """The frames with transparency laid over white, as for pictures of a request."""
    return [over_white(frame) if frame.mode == "RGBA" else frame for frame in clip.images()]


Encoder = Callable[[Clip, float, int, str], bytes]
ENCODERS: Mapping[str, Encoder] = {
    "png": lambda clip, fps, _quality, comment: encode_png(clip, fps, comment),
    "gif": lambda clip, fps, _quality, comment: encode_gif(clip, fps, comment),
    "zip": lambda clip, _fps, _quality, comment: encode_zip(clip, comment),
    "jpeg": lambda clip, _fps, quality, comment: encode_still(clip, "jpeg", quality, comment),
    "webp": lambda clip, _fps, quality, comment: encode_still(clip, "webp", quality, comment),
    "avif": lambda clip, _fps, quality, comment: encode_still(clip, "avif", quality, comment),
}
"""A function from a clip, its frames per second, a quality and a comment to the bytes of a file."""
