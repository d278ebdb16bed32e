"""One output of a generation that was run in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# With one entry a step; those of an encoder have one a layer.
_BY_STEP = (
    "scores", "logits", "attentions", "hidden_states", "decoder_attentions", "cross_attentions",
    "decoder_hidden_states",
)  # fmt: skip
_OF_THE_ENCODER = ("encoder_attentions", "encoder_hidden_states")


def joined(parts: Sequence[Any], last: Any) -> Any:
    """Return `last`, the output of the part that came to the end, with what the parts before it gave step by step.

    The last step of each of `parts` is left out: it has failed, and the part after it begins with that step. Sequences
    and caches are whole in `last`. What an encoder gave is that of the first part: a later one may work in another dtype.
    """
    if not isinstance(last, dict):
        return last
    for name in _BY_STEP:
        if last.get(name) is not None:
            earlier = [entry for part in parts for entry in part[name][:-1]]
            last[name] = (*earlier, *last[name])
    for name in _OF_THE_ENCODER:
        if parts and last.get(name) is not None:
            last[name] = parts[0][name]
    return last
