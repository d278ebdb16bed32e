"""Load one model at a time in this process, whatever the number of threads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..processes.forked_lock import ForkedLock

_lock = ForkedLock()  # a model may load another while it is built


def one_at_a_time() -> AbstractContextManager[object]:
    """Return a context that one thread at a time may be in: a model is loaded in it.

    While transformers builds a model it replaces `PreTrainedModel.tie_weights`, functions of `torch.nn.init` and the
    default dtype. Two threads put back each other's replacements: after that (5.23) no model of the process is tied or
    initialized any more, and the default dtype is the checkpoint's.
    """
    # Ranks that are threads of one process wait for each other inside the load.
    ranks_meet = torch.distributed.is_available() and torch.distributed.is_initialized()
    return nullcontext() if ranks_meet else _lock
