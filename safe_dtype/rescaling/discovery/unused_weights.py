"""Weights that had nothing to do in the twin: experts without a token, attention to what was not given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from ...facts import Gauge, Move, Part
from .block_roles import Roles
from .jacobian import System
from .knobs import Knob
from .trace import Stack, Trace

_NOTHING = 1e-12  # of an equation's length


def idle_weights(system: System) -> frozenset[str]:
    """Return the names of the parameters that occur in no equation."""
    sizes = system.matrix.abs().amax(dim=0).tolist() if len(system.matrix) else [0.0] * len(system.columns)
    return frozenset(
        column.target
        for column, size in zip(system.columns, sizes, strict=True)
        if isinstance(column, Knob) and column.part is Part.WEIGHT and size < _NOTHING
    )


def never_run(stack: Stack, idle: frozenset[str], traced: Trace, model: nn.Module) -> tuple[str, ...]:
    """Return the modules in blocks of `stack` that did not run, nor any that plays their role.

    Nobody knows what they would write into the hidden state.
    """
    unused: list[str] = []
    for block in stack.blocks:
        for (part, _), names in Roles(model.get_submodule(block)).members.items():
            targets = [f"{block}.{name}" for name in names]
            if part is Part.WEIGHT and all(target in idle for target in targets):
                unused += [owner for owner in map(_owner, targets) if owner not in traced.order]
    return tuple(dict.fromkeys(unused))


def idle_parts(traced: Trace, idle: frozenset[str], model: nn.Module) -> tuple[str, ...]:
    """Return the outermost modules, blocks aside, none of whose matrices the twin used: an image encoder, say."""
    blocks = tuple(f"{block}." for stack in traced.stacks for block in stack.blocks)
    unused: list[str] = []
    for path, module in model.named_modules():
        inside = f"{path}."
        if inside.startswith((*blocks, *(f"{other}." for other in unused))):
            continue
        matrices = [name for name, one in module.named_parameters() if one.dim() > 1]
        # What ran all the same holds constants, such as positions.
        if (
            matrices
            and path not in traced.order
            and all(f"{inside if path else ''}{name}" in idle for name in matrices)
        ):
            unused.append(path)
    return tuple(unused)


def completed(gauge: Gauge, stacks: Sequence[Stack], idle: frozenset[str], model: nn.Module) -> Gauge:
    """Return the gauge that also moves idle weights, where those that play the same role are all moved alike."""
    blocks = [block for stack in stacks for block in stack.blocks]
    more = [move for block in blocks for move in _for_the_idle(gauge, block, idle, model)]
    return Gauge(gauge.name, (*gauge.moves, *more))


def _for_the_idle(gauge: Gauge, block: str, idle: frozenset[str], model: nn.Module) -> Iterator[Move]:
    start = f"{block}."
    own = [move for move in gauge.moves if move.part is Part.WEIGHT and move.target.startswith(start)]
    if not own or not any(name.startswith(start) for name in idle):
        return
    roles = Roles(model.get_submodule(block))
    ways: dict[str, dict[Move, None]] = {}
    for move in own:
        role = roles.role_of(move.target.removeprefix(start))
        ways.setdefault(role, {})[replace(move, target=role)] = None
    moved = {move.target for move in own}
    for role, alike in ways.items():
        for name in roles.members[Part.WEIGHT, role]:
            if f"{start}{name}" in idle - moved and len(alike) == 1:
                yield replace(next(iter(alike)), target=f"{start}{name}")


def _owner(target: str) -> str:
    return target.rpartition(".")[0]
