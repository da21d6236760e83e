"""`python -P -m services.decoder`: a decoder process."""

from triptych.v1.dispatch_pb2 import ROLE_DECODER

from ..worker.process import run_stage_process

if __name__ == "__main__":
    run_stage_process(ROLE_DECODER)
