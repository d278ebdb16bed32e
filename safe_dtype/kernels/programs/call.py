"""Calls of compiled functions that are made later: see `kernel_program`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class At:
    """A field that is another at each run: so much more than what `name` stands for then, an address or a number."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A call of a compiled function of `task_ir`, with what `threads.run` takes."""

    address: int
    end: int
    at_a_time: int
    fields: Sequence[int | At]
