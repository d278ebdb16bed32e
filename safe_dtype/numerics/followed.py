"""Whether torch follows what is computed, to make something else of it: batches, derivatives, tangents."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

_innermost_transform = torch._C._functorch.peek_interpreter_stack


def is_followed() -> bool:
    """Whether this is inside of `torch.vmap`, another transform of `torch.func`, or of forward-mode differentiation.

    There a tensor is more than its numbers: reading one of a batch fails, and what is written in place loses its tangent.
    """
    return _innermost_transform() is not None or forward_ad._current_level >= 0
