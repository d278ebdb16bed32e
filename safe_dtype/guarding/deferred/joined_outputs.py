"""One output of a generation that was run in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# With one entry a step; those of an encoder have one a layer.
_BY_STEP = (
    "scores", "logits", "attentions", "hidden_states", "decoder_attentions", "cross_attentions",
    "decoder_hidden_states",
)  # fmt: skip


def joined(parts: Sequence[Any], last: Any) -> Any:
    """Return `last`, the output of the part that came to the end, with what the parts before it gave step by step.

    The last step of each of `parts` is left out: it has failed, and the part after it begins with that step. Sequences
    and caches are whole in `last`.
    """
    if not isinstance(last, dict):
        return last
    for name in _BY_STEP:
        if last.get(name) is not None:
            earlier = [entry for part in parts for entry in part[name][:-1]]
            last[name] = (*earlier, *last[name])
    return last
