"""Gauges of hidden states: what every block of a stack is given and returns becomes smaller, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from ..gauges import Gauge, Move, Part
from .jacobian import Cut, System
from .kinds import Roles
from .knobs import Knob
from .solve import solve
from .trace import Stack, Trace

_DEAD = 1e-12  # of an equation's length


def residual_gauge(system: System, stack: Stack, name: str, model: nn.Module) -> Gauge | None:
    """Return the gauge that halves what every block of `stack` is given and returns; None if there is none.

    It begins with the input of the first block, not with the embedding: every token comes by there, be it an id, an
    image or a soft prompt, and an embedding that is tied to the head stays as it is.
    """
    given, free = _unknowns(system, stack)
    found = solve(system.matrix, given, free)
    if found is None:
        return None
    return Gauge(name, tuple(_with_the_idle(_moves(system, found), system, stack, model)))


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


def never_run(system: System, stack: Stack, traced: Trace, model: nn.Module) -> tuple[str, ...]:
    """Return the modules in blocks of `stack` whose weights the twin never used: nobody knows what they write."""
    idle = _idle(system)
    found = []
    for block in stack.blocks:
        roles = Roles(model.get_submodule(block))
        used = {roles.role_of(name) for name in _relative(system, block) if f"{block}.{name}" not in idle}
        for name in _relative(system, block):
            module = f"{block}.{name}".rpartition(".")[0]
            if f"{block}.{name}" in idle and module not in traced.order and roles.role_of(name) not in used:
                found.append(module)
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


def _moves(system: System, found: Mapping[int, int]) -> list[Move]:
    moves = []
    for place, power in found.items():
        column = system.columns[place]
        if isinstance(column, Knob):
            moves.append(Move(column.part, column.target, power))
    return moves


def _with_the_idle(moves: Sequence[Move], system: System, stack: Stack, model: nn.Module) -> Iterator[Move]:
    """Yield the moves, and the same for weights that play a moved role and had nothing to do: experts without tokens."""
    yield from moves
    idle = _idle(system)
    for block in stack.blocks:
        start = f"{block}."
        own = [move for move in moves if move.part is Part.WEIGHT and move.target.startswith(start)]
        roles = Roles(model.get_submodule(block))
        powers: dict[str, set[int]] = {}
        for move in own:
            powers.setdefault(roles.role_of(move.target.removeprefix(start)), set()).add(move.power)
        for role, values in powers.items():
            for name in roles.members[Part.WEIGHT, role]:
                if f"{start}{name}" in idle and len(values) == 1:
                    yield replace(own[0], target=f"{start}{name}", power=next(iter(values)))


def _idle(system: System) -> set[str]:
    """Return the names of the weights that change nothing in any equation."""
    sizes = system.matrix.abs().amax(dim=0) if len(system.matrix) else torch.zeros(len(system.columns))
    return {
        column.target
        for column, size in zip(system.columns, sizes.tolist(), strict=True)
        if isinstance(column, Knob) and column.part is Part.WEIGHT and size < _DEAD
    }


def _relative(system: System, block: str) -> Iterator[str]:
    start = f"{block}."
    for column in system.columns:
        if isinstance(column, Knob) and column.part is Part.WEIGHT and column.target.startswith(start):
            yield column.target.removeprefix(start)
