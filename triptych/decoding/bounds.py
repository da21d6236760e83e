"""What the media of one request may cost. The table of all costs is docs/costs.md."""

from typing import NamedTuple

IMAGE_PIXELS_MAX = 64 * 2**20
"""Largest picture or frame: 8192 × 8192, the largest side that a request may ask for, squared."""
MEDIA_PIXELS_MAX = 256 * 2**20
"""Most pixels of all files of a request together, once decoded: a video of 81 frames of 720p, its mask, and one of the
largest pictures. Pillow keeps four bytes of each: 1 GiB at the encoder."""
VIDEO_FRAMES_MAX = 4096
"""Most frames of a video: as many as a request may ask for."""
MEDIA_FRAMES_MAX = 2 * VIDEO_FRAMES_MAX
"""Most frames of all files together: a video's and its mask's."""
SCAN_PIXELS_MAX = 3 * 2**30
"""Most pixels times scans of a request's JPEGs. Each scan of a progressive one goes over the whole picture: cameras and
libraries write about ten, and this leaves twelve to all the pixels that a request may bring."""
SAMPLES_MAX = 2**20
"""Most samples of all tracks of a video, sound included. FFmpeg makes an index of them all from the count alone."""
EDITS_MAX = 64
"""Most entries of a track's edit list: FFmpeg goes over all samples for each. Editors write one or two."""
BOXES_MAX = 100_000
"""Most boxes looked at in an MP4: a fragmented one has a dozen for each fragment."""

CPU_S_MAX = 20
"""CPU seconds for all files of a request: about three times what the largest honest request takes on a slow core."""
WALL_S_MAX = 60.0
"""Bound of one exchange with a child: three times its CPU time, for machines that are busy."""
IDLE_S = 60.0
"""After so long without a request a child ends, and gives its memory back."""
CHILD_BYTES_MAX = 2**30
"""Memory that a child may take beyond what it has when it starts: the largest picture in the dearest format (WebP: two
canvases, a copy and the RGB), and the files themselves."""
REQUEST_BYTES_MAX = 64 * 2**20
"""Most bytes of files that a child takes: a message's largest size."""
LINE_BYTES_MAX = 64 * 2**10
"""Longest line between the two processes: 64 files' names."""


class Limits(NamedTuple):
    """What a child may take; see the constants."""

    cpu_s: int = CPU_S_MAX
    wall_s: float = WALL_S_MAX
    memory_bytes: int = CHILD_BYTES_MAX
    idle_s: float = IDLE_S
