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
    fixed, free = _unknowns(system, stack)
    powers = solve(system.matrix, fixed, free)
    return None if powers is None else Gauge(name, tuple(_moves(system, powers)))


def obstacles(system: System, stack: Stack) -> tuple[str, ...]:
    """Return the names of the blocks of `stack` that allow no such gauge, each looked at by itself."""
    fixed, free = _unknowns(system, stack)
    names = []
    for end in dict.fromkeys(system.ends):
        if end is not None and end.block in stack.blocks:
            rows = [number for number, other in enumerate(system.ends) if other == end]
            if solve(system.matrix[rows], fixed, free) is None:
                names.append(end.block)
    return tuple(dict.fromkeys(names))


def _unknowns(system: System, stack: Stack) -> tuple[dict[int, int], list[int]]:
    """Return the unknowns whose values are fixed, with these values, and those that are free."""
    fixed: dict[int, int] = {}
    free: list[int] = []
    for place, column in enumerate(system.columns):
        if isinstance(column, Cut):
            fixed[place] = -1 if column.block in stack.blocks else 0
        else:
            free.append(place)
    return fixed, free


def _moves(system: System, powers: Mapping[int, int]) -> Iterator[Move]:
    for place, power in powers.items():
        column = system.columns[place]
        if isinstance(column, Knob):
            yield Move(column.part, column.target, power)
