"""From the twin to the real model: each of its blocks is moved as the twin's blocks of the same kind are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from ...facts import Gauge, Move, Part
from .block_roles import BlockKind, Roles
from .trace import Stack

Role = tuple[Part, str]


class TransferError(Exception):
    """The real model has something that the twin has not."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Block:
    """A block, and what moves in it. Targets are relative, and roles where all that play a role move alike."""

    place: str  # "first", "last" or "between" in its stack
    kind: BlockKind
    moves: frozenset[Move]
    module: nn.Module


def transfer(gauge: Gauge, stacks: Sequence[Stack], twin: nn.Module, model: nn.Module, *, whole: bool = True) -> Gauge:
    """Return the gauge of `model` that is `gauge` in its twin. Only names and shapes are looked at.

    Args:
        gauge: Of the twin.
        stacks: Of the twin.
        twin: A tiny model.
        model: Of the same class, of any size and depth; it may be on the meta device.
        whole: Whether every block takes part, as in a rescaling of the hidden state; else those that are not known
            are left as they are.

    Raises:
        TransferError: If `model` has a block that the twin has not, or one that the twin moves in more than one way.
    """
    moves: list[Move] = []
    for stack in stacks:
        known = tuple(_blocks(gauge, stack, twin))
        if any(one.moves for one in known):
            names = tuple(_block_names(stack, model))
            for place, name in zip(_places(len(names)), names, strict=True):
                moves += _moves_of(known, name, place, model, whole=whole)
    outside = [
        move for move in gauge.moves if not any(move.target.startswith(f"{one}.") for one in _all_blocks(stacks))
    ]
    on_block = [move for move in outside if move.target in _all_blocks(stacks)]  # the first of its stack, by its name
    roles, real_roles = (
        Roles(root, frozenset(name for stack in stacks for name in _block_names(stack, root)))
        for root in (twin, model)
    )
    elsewhere = _by_role([move for move in outside if move not in on_block], roles)
    moves += [*on_block, *_placed(elsewhere, real_roles, roles, "")]
    return Gauge(gauge.name, tuple(moves))


def _all_blocks(stacks: Iterable[Stack]) -> frozenset[str]:
    return frozenset(name for stack in stacks for name in stack.blocks)


def _blocks(gauge: Gauge, stack: Stack, twin: nn.Module) -> Iterator[_Block]:
    for place, name in zip(_places(len(stack.blocks)), stack.blocks, strict=True):
        start = f"{name}."
        own = [
            replace(move, target=move.target.removeprefix(start))
            for move in gauge.moves
            if move.target.startswith(start)
        ]
        roles = Roles(twin.get_submodule(name))
        yield _Block(place, roles.kind, frozenset(_by_role(own, roles)), twin.get_submodule(name))


def _by_role(moves: Sequence[Move], roles: Roles) -> list[Move]:
    """Return one move for all that play the same role, where all that play it are moved in the same way."""
    by_role: dict[Role, list[Move]] = {}
    for move in moves:
        by_role.setdefault((move.part, roles.role_of(move.target)), []).append(move)
    result: list[Move] = []
    for (part, role), ones in by_role.items():
        shared = {replace(one, target=role) for one in ones}
        members = roles.members.get((part, role), ())
        alike = all(
            {replace(one, target=role) for one in ones if one.target == member} == shared for member in members
        )
        result += shared if alike else ones
    return result


def _moves_of(known: Sequence[_Block], name: str, place: str, model: nn.Module, *, whole: bool) -> list[Move]:
    roles = Roles(model.get_submodule(name))
    kind = roles.kind
    fitting = [one for one in known if one.kind == kind] or [
        block for block in known if (block.kind.name, block.kind.structure) == (kind.name, kind.structure)
    ]
    if len({one.moves for one in fitting}) > 1:
        fitting = [one for one in fitting if one.place == place]
    ways = {one.moves for one in fitting}
    if len(ways) == 1:
        moves = _placed(ways.pop(), roles, Roles(fitting[0].module), f"{name}.")
        _check_shares(moves, name, fitting[0].module, model.get_submodule(name))
        return moves
    if not whole and not ways:
        return []
    raise TransferError(
        f"{name} ({kind.name}) is moved in {len(ways)} ways in the twin" if ways
        else f"the twin has no block like {name} ({kind.name})"
    )  # fmt: skip


def _placed(moves: Iterable[Move], roles: Roles, in_twin: Roles, start: str) -> list[Move]:
    """Return the moves of every member of each role, with names that begin with `start`."""
    placed = []
    for move in sorted(moves, key=str):
        members = roles.members.get((move.part, move.target), ())
        if not members:  # one of those that play a role: it is the same one where there are as many
            key = move.part, roles.role_of(move.target)
            if move.target not in roles.members.get(key, ()):
                raise TransferError(f"there is no {start}{move.target}")
            if roles.members[key] != in_twin.members.get(key):
                raise TransferError(f"of the modules like {start}{move.target} some are moved, and others are not")
            members = (move.target,)
        placed += [replace(move, target=f"{start}{name}") for name in members]
    return placed


def _places(count: int) -> Iterator[str]:
    for number in range(count):
        yield "first" if number == 0 else "last" if number == count - 1 else "between"


def _block_names(stack: Stack, model: nn.Module) -> Iterator[str]:
    for path in stack.lists:
        try:
            children = model.get_submodule(path)
        except AttributeError as exc:
            raise TransferError(f"there is no {path}") from exc
        yield from (f"{path}.{name}" for name, _ in children.named_children())


def _check_shares(moves: Iterable[Move], name: str, twin: nn.Module, real: nn.Module) -> None:
    """See to it that rows of a weight mean the same in the real block: its size is in the same proportion to others.

    Raises:
        TransferError: If they do not, as where queries and keys share a weight in another ratio.
    """
    for move in moves:
        if move.rows is None:
            continue
        target = move.target.removeprefix(f"{name}.")
        sizes = [tuple(_sizes(block, target, move.rows.dim)) for block in (twin, real)]
        shares = [
            [own[0] / other for other in own[1:]] for own in sizes
        ]  # of the weight's rows, to the sizes of the weights beside it
        if shares[0] != shares[1]:
            raise TransferError(f"{move.target} is not made up as in the twin")
        try:
            move.rows.of(sizes[1][0])
        except ValueError as exc:
            raise TransferError(f"{move.target}: {exc}") from exc


def _sizes(block: nn.Module, target: str, dim: int) -> Iterator[int]:
    """Yield how many rows `target` has, and then the inner sizes of the weights that are used beside it."""
    weight = block.get_parameter(target)
    yield weight.shape[dim]
    around = target.rpartition(".")[0]
    around = around if weight.dim() > 2 else around.rpartition(".")[0]
    beside = [one for name, one in block.named_parameters() if name != target and name.startswith(around)]
    inner = weight.shape[-1 if dim == -2 else -2] if weight.dim() > 1 else 0
    sizes = [size for one in beside if one.dim() > 1 for size in one.shape[-2:] if size != inner]
    yield from sizes or [inner or beside[0].shape[-1]]
