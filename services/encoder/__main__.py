"""`python -P -m services.encoder`: an encoder process."""

from services.encoder.service import EncoderServicer
from services.stage_process import run_stage_process
from triptych.v1.dispatch_pb2 import ROLE_ENCODER

if __name__ == "__main__":
    run_stage_process(ROLE_ENCODER, EncoderServicer)
