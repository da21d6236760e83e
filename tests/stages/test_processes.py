"""Each role in a process of its own, joined by bytes alone, gives the bits of the pipeline in one process."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.stages.conftest import assert_equal_bits, picture
from tests.stages.test_parity import request_of, run_modular
from triptych.roles import ROLES
from triptych.transport import codec
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.room_pb2 import Manifest

ROOT = Path(__file__).parents[2]


def test_three_processes(folder_of: Any, tmp_path: Path) -> None:
    """Where every kind of state crosses: the job's generator after the encoder drew from it, and the global one's."""
    folder, fields = folder_of("ltx_image"), {"num_frames": 5, "guidance_scale": 3.0}
    file = io.BytesIO()
    picture().save(file, format="PNG")
    request = request_of(fields)
    request.media.add(name="image", data=file.getvalue())
    files = [tmp_path / str(index) for index in range(4)]
    files[0].write_bytes(request.SerializeToString())
    held = []
    for role, source, target in zip(ROLES, files, files[1:], strict=False):
        command = [sys.executable, "-m", "tests.stages.role_process", folder, Role.Name(role), str(source), str(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        held.append(set(json.loads(done.stdout.splitlines()[-1])))
    data = files[-1].read_bytes()
    (manifest_bytes,) = struct.unpack_from("<Q", data)
    manifest = Manifest.FromString(data[8 : 8 + manifest_bytes])
    outputs = codec.decode(manifest, memoryview(bytearray(data[8 + manifest_bytes :])))
    assert_equal_bits(outputs["videos"], run_modular(folder, fields, True, "videos"))
    assert ["transformer" in components for components in held] == [False, True, False]
