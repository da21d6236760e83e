"""`python -P -m services.text_encoder`: the text encoders of one model, for the encoders of this machine."""

from .process import run_text_encoder

if __name__ == "__main__":
    run_text_encoder()
