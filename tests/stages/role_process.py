"""A program: one role in a process of its own. Reads and writes nothing but bytes.

    python role_process.py FOLDER ROLE INPUT OUTPUT

For the encoder INPUT is a serialized `GenerationRequest`; for later roles what the role before wrote to OUTPUT: the
manifest's length (u64), the manifest, the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import torch

from tests.stages.test_parity import to_bytes
from triptych.model.inputs import resolve
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.transport import codec
from triptych.v1.dispatch_pb2 import ROLE_ENCODER, Role
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.room_pb2 import Manifest


def main(folder: str, role_name: str, source: str, target: str) -> None:
    torch.set_num_threads(1)
    role = Role.Value(role_name)
    whole = Whole.open(folder)
    stage = Stage.load(whole, role)
    data = Path(source).read_bytes()
    if role == ROLE_ENCODER:
        values = resolve(GenerationRequest.FromString(data), describe(whole)).for_encoder()
    else:
        (manifest_bytes,) = struct.unpack_from("<Q", data)
        manifest, room = data[8 : 8 + manifest_bytes], data[8 + manifest_bytes :]
        values = codec.decode(Manifest.FromString(manifest), memoryview(bytearray(room)))
    manifest, room = to_bytes(stage.run(values, lambda step: None, lambda: False))
    Path(target).write_bytes(struct.pack("<Q", len(manifest)) + manifest + room)
    print(json.dumps(stage.component_bytes))


if __name__ == "__main__":
    main(*sys.argv[1:])
