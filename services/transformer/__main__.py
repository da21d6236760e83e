"""`python -P -m services.transformer`: a transformer process."""

from services.stage_process import run_stage_process
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER

if __name__ == "__main__":
    run_stage_process(ROLE_TRANSFORMER)
