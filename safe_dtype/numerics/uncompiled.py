"""Code that runs eagerly for a while, in all threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ..processes.forked_lock import ForkedLock

_lock = ForkedLock()
_open: list[object] = []  # one for every block that is running
_stance: list[AbstractContextManager[Any]] = []  # that of the first of them


@contextmanager
def uncompiled() -> Iterator[None]:
    """Have everything that is compiled run eagerly within the block, and compile nothing.

    torch's `set_stance` is one for all threads, and puts back what it found: of two blocks that overlap in two threads the
    second would leave the process uncompiled for ever.
    """
    block = object()
    with _lock:
        if not _open and "torch._dynamo" in sys.modules:  # else nothing is compiled, and it takes seconds to import
            stance = torch.compiler.set_stance("force_eager")
            stance.__enter__()
            _stance.append(stance)
        _open.append(block)
    try:
        yield
    finally:
        with _lock:
            _open.remove(block)
            if not _open and _stance:
                _stance.pop().__exit__(None, None, None)
