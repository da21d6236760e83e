"""A text encoder's call as lists of tokens, and its output from their last hidden states: what language servers take.

Right for models that read from left to right, whose blocks read the last hidden states at tokens that a mask shows:
what stands at padding is zero. transformers' last hidden states are those after the model's final norm, under the name
`last_hidden_state` and as the last of `hidden_states`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from triptych.errors import InvalidRequest, WrongState
from triptych.stages.engines import Answer, Call
from triptych.stages.library import BaseModelOutput

_PASSED_OVER = frozenset(("output_hidden_states", "return_dict", "use_cache", "output_attentions"))
"""Options that change which parts an output has, and none of its last hidden states."""


class Asked(NamedTuple):
    """A call that a server of a language model can take."""

    prompts: list[list[int]]
    """The tokens of each row, without padding."""
    mask: torch.Tensor
    """Where they stand, shaped `(rows, length)`."""
    config: Any

    def answer(self, rows: Sequence[Any], dtype: str, device: str) -> Answer:
        """The output with these last hidden states, an array of numpy for each row.

        Raises WrongState where they aren't of the component's size.
        """
        text = self.config.get_text_config()
        size, layers = text.hidden_size, text.num_hidden_layers
        last = torch.zeros((*self.mask.shape, size), dtype=getattr(torch, dtype))
        for row, mask, values in zip(last, self.mask, rows, strict=True):
            if values.shape != (int(mask.sum()), size):
                raise WrongState(f"the server's hidden states are {values.shape[-1]} wide, and the model's {size}")
            row[mask] = torch.from_numpy(values.copy()).to(last.dtype)
        empty = last.new_empty(0)
        output = BaseModelOutput(last_hidden_state=last, hidden_states=(empty,) * layers + (last,))
        return Answer(output, ("last_hidden_state", f"hidden_states.{layers}"))


def asked_of(call: Call) -> Asked:
    """The tokens of a call. Raises InvalidRequest for a call that asks for more than tokens tell."""
    given = {name: value for name, value in call.kwargs.items() if value is not None and name not in _PASSED_OVER}
    ids = given.pop("input_ids", None) if not call.args else call.args[0]
    mask = given.pop("attention_mask", None)
    if call.module or len(call.args) > 1 or given or not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        named = ", ".join(sorted(given)) or "other arguments"
        raise InvalidRequest(f"{call.component}.{call.module}".rstrip("."), named, "a call with tokens and their mask")
    shown = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(torch.bool)
    if shown.shape != ids.shape or not bool(shown.any(dim=1).all()):
        raise InvalidRequest(call.component, list(shown.shape), "a mask that shows a token of every row")
    prompts = [row[where].tolist() for row, where in zip(ids.cpu(), shown.cpu(), strict=True)]
    return Asked(prompts, shown.cpu(), call.config)
