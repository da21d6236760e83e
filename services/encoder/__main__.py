"""`python -P -m services.encoder`: an encoder process."""

from triptych.v1.dispatch_pb2 import ROLE_ENCODER

from ..worker.process import run_stage_process

if __name__ == "__main__":
    run_stage_process(ROLE_ENCODER)
