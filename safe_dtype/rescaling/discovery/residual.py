"""Gauges of hidden states: what every block of a stack is given and returns becomes smaller, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...facts import Gauge, Move
from .jacobian import Cut, System
from .knobs import Knob
from .solve import solve
from .trace import Stack


def residual_gauge(system: System, stack: Stack, name: str) -> Gauge | None:
    """Return the gauge that halves what every block of `stack` is given and returns; None if there is none.

    It begins with the input of the first block, not with the embedding: every token comes by there, be it an id, an
    image or a soft prompt, and an embedding that is tied to the head stays as it is.
    """
    given, free = _unknowns(system, stack)
    found = solve(system.matrix, given, free)
    return None if found is None else Gauge(name, tuple(_moves(system, found)))


def obstacles(system: System, stack: Stack) -> tuple[str, ...]:
    """Return the names of the blocks of `stack` that allow no such gauge, each looked at by itself."""
    given, free = _unknowns(system, stack)
    found = []
    for end in dict.fromkeys(system.ends):
        if end is not None and end.block in stack.blocks:
            rows = [number for number, other in enumerate(system.ends) if other == end]
            if solve(system.matrix[rows], given, free) is None:
                found.append(end.block)
    return tuple(dict.fromkeys(found))


def _unknowns(system: System, stack: Stack) -> tuple[dict[int, int], list[int]]:
    """Return the unknowns that are given, with their values, and those that are free."""
    given: dict[int, int] = {}
    free: list[int] = []
    for place, column in enumerate(system.columns):
        if isinstance(column, Cut):
            given[place] = -1 if column.block in stack.blocks else 0
        else:
            free.append(place)
    return given, free


def _moves(system: System, found: Mapping[int, int]) -> Iterator[Move]:
    for place, power in found.items():
        column = system.columns[place]
        if isinstance(column, Knob):
            yield Move(column.part, column.target, power)
