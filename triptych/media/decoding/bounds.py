"""Bounds on the cost of one request's media. The table of all costs is docs/costs.md."""

from typing import NamedTuple

IMAGE_PIXELS_MAX = 64 * 2**20
"""Largest picture or frame: 8192 × 8192, the square of the largest side that a request may ask for."""
MEDIA_PIXELS_MAX = 256 * 2**20
"""Most pixels of all decoded files of a request: a video of 81 frames of 720p, its mask, and one of the largest
pictures. Pillow keeps four bytes for each: 1 GiB at the encoder."""
VIDEO_FRAMES_MAX = 4096
"""Most frames of a video: as many as a request may ask for."""
MEDIA_FRAMES_MAX = 2 * VIDEO_FRAMES_MAX
"""Most frames of all files of a request: a video's and its mask's."""
SCAN_PIXELS_MAX = 3 * 2**30
"""Most pixels times scans of a request's JPEGs. Each scan of a progressive JPEG covers the whole picture. Cameras and
libraries write about ten scans, and this allows twelve for the most pixels of a request."""
SAMPLES_MAX = 2**20
"""Most samples of all tracks of a video, including sound. FFmpeg makes an index of them all from the count alone."""
SOUND_SAMPLES_MAX = 64 * 2**20
"""Most samples of sound of all files and channels: 256 MiB as float32, and 11 minutes of stereo at 48 kHz."""
EDITS_MAX = 64
"""Most entries of a track's edit list. FFmpeg goes over all samples for each; editors write one or two."""
BOXES_MAX = 100_000
"""Most parts of a container that are read: boxes of an MP4, of which a fragment has a dozen; elements of a Matroska
file and frames of AAC, about a hundred for a second; pages of an Ogg."""

CPU_S_MAX = 20
"""CPU seconds for all files of a request: about three times the need of the largest honest request on a slow core."""
WALL_S_MAX = 60.0
"""Bound of one exchange with a child: three times its CPU time, for machines that are busy."""
IDLE_S = 60.0
"""A child ends after so long without a request, and gives its memory back."""
CHILD_BYTES_MAX = 2**30
"""Memory that a child may take beyond its size at the start: for the files, and for the largest picture in the most
expensive format (WebP: two canvases, a copy and the RGB)."""
LINE_BYTES_MAX = 256 * 2**10
"""Longest line between the two processes: 64 files' names and places, of 256 letters that JSON escapes."""


class Limits(NamedTuple):
    """Bounds of a child process; see the constants."""

    cpu_s: int = CPU_S_MAX
    wall_s: float = WALL_S_MAX
    memory_bytes: int = CHILD_BYTES_MAX
    idle_s: float = IDLE_S
