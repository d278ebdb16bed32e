"""Gauges inside of blocks: one weight becomes smaller, and another one of its block makes up for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...facts import Gauge, Move, Part, Rows
from .block_roles import BlockKind, Roles
from .jacobian import System, system_of
from .knobs import Knob
from .solve import solve
from .trace import Trace
from .twin import Twin

_MOST_MOVES = 6  # in one block; what takes more is no relation between two weights
_GROUP = 8  # rows that are taken together: no boundary between fused weights lies inside of as many
_FITS = 1e-7

Pattern = frozenset[Move]  # targets are roles in a block


@dataclass(frozen=True)
class _Block:
    name: str
    module: nn.Module
    knobs: tuple[Knob, ...]  # in order of preference
    traced: Trace

    def when(self, knob: Knob) -> float:
        return self.traced.when(knob.module)

    def matrices(self) -> list[Knob]:
        """Return the weights of two or more dimensions, in the order in which they are used."""
        weights = [
            knob for knob in self.knobs if knob.part is Part.WEIGHT and _dims(self, knob) > 1 and not _is_bias(knob)
        ]
        return sorted(weights, key=lambda knob: (self.when(knob), _place_in_module(self, knob)))


def interior_gauges(twin: Twin, system: System, traced: Trace) -> Iterator[Gauge]:
    """Yield the gauges inside of blocks, each for all blocks that have it; they are not proved.

    Args:
        twin: It comes back as it was.
        system: Of the twin, in all of its knobs.
        traced: Of the twin.
    """
    by_pattern: dict[Pattern, list[Move]] = {}
    parts: dict[BlockKind, list[Pattern]] = {}
    for block in _blocks(twin, system, traced):
        roles = Roles(block.module)
        whole = list(_whole(system, block))
        pairs = [moves for moves in whole if _is_pair(moves)]
        if roles.kind not in parts:
            by_rows = _by_rows(twin, block, {move.target for moves in pairs for move in moves})
            parts[roles.kind] = [_pattern(moves, block, roles) for moves in by_rows]
        own = [*pairs, *(list(_placed(pattern, block, roles)) for pattern in parts[roles.kind])]
        smaller = {move.target for moves in own for move in moves if move.power < 0}
        own += [moves for moves in whole if moves[0].target not in smaller]
        for moves in own:
            known = by_pattern.setdefault(_pattern(moves, block, roles), [])
            known += [move for move in moves if move not in known]
    names: dict[str, int] = {}
    for pattern, moves in by_pattern.items():
        name = _name(pattern)
        names[name] = names.get(name, 0) + 1
        yield Gauge(name if names[name] == 1 else f"{name} ({names[name]})", tuple(moves))


def _is_pair(moves: Sequence[Move]) -> bool:
    """Whether one thing makes up for one weight: not a weight that is several in one, where several have to."""
    return sum(1 for move in moves if move.power > 0) + any(_is_eps(move) for move in moves) == 1


def _blocks(twin: Twin, system: System, traced: Trace) -> Iterator[_Block]:
    for name in dict.fromkeys(name for stack in traced.stacks for name in stack.blocks):
        start = f"{name}."
        own = tuple(one for one in system.columns if isinstance(one, Knob) and one.target.startswith(start))
        yield _Block(name, twin.model.get_submodule(name), own, traced)


def _whole(system: System, block: _Block) -> Iterator[list[Move]]:
    """Yield the moves of whole parameters that make up for a smaller weight (the first), for each that can be smaller."""
    index = system.index()
    matrix = system.matrix[:, [index[knob] for knob in block.knobs]]
    matrix = matrix[matrix.norm(dim=1) > _FITS]
    own = {knob: place for place, knob in enumerate(block.knobs)}
    for root in block.matrices():
        if not len(matrix) or float(matrix[:, own[root]].norm()) < _FITS:
            continue
        partners = _partners(block, root)
        powers = solve(matrix, {own[root]: -1}, [own[knob] for knob in partners])
        if powers is None or not 1 < len(powers) <= _MOST_MOVES:
            continue
        for knob in partners:
            # A bias that changes nothing, as softmax forgets that of the keys, is still part of what becomes smaller.
            if _is_bias_of(knob, root) and float(matrix[:, own[knob]].norm()) < _FITS:
                powers[own[knob]] = -1
        moves = [Move(block.knobs[at].part, block.knobs[at].target, power) for at, power in powers.items()]
        if any(move.power > 0 or _is_eps(move) for move in moves):
            yield moves


def _partners(block: _Block, root: Knob) -> list[Knob]:
    """Return what may make up for a smaller `root`, preferred first: what comes after it, and its own bias."""
    later = [knob for knob in block.knobs if block.when(knob) > block.when(root) and knob.part in _MOVED]
    inside = [knob for knob in block.knobs if knob.module == root.module and knob != root and knob.part in _MOVED]
    own = [knob for knob in inside if _is_bias_of(knob, root)]
    beside = [knob for knob in inside if knob not in own]
    return own + sorted(
        later + beside, key=lambda knob: (_preference(block, knob), abs(block.when(knob) - block.when(root)))
    )


_MOVED = (Part.WEIGHT, Part.NUMBER)


def _preference(block: _Block, knob: Knob) -> int:
    if knob.is_eps:
        return 0
    if knob.part is Part.NUMBER:
        return 1
    return 2 if _dims(block, knob) > 1 and not _is_bias(knob) else 3


def _by_rows(twin: Twin, block: _Block, moved: Collection[str]) -> Iterator[list[Move]]:
    """Yield the moves of a part of a weight's rows with what makes up for it: of weights that are several in one.

    Args:
        twin: It comes back as it was.
        block: Of the twin.
        moved: Names of parameters that have a gauge already.
    """
    candidates = [_candidate(block, knob, moved) for knob in block.matrices() if knob.target not in moved]
    candidates = [one for one in candidates if one.partners]
    groups = [group for one in candidates for groups in one.groups for group in groups]
    partners = dict.fromkeys(partner for one in candidates for partner in one.partners)
    together = max((len(groups) + len(one.partners) for one in candidates for groups in one.groups), default=0)
    if not candidates:
        return
    every = [*dict.fromkeys(groups), *partners]
    system = system_of(twin, every, block.traced.stacks, about=every[: -len(partners)], together=together)
    for candidate in candidates:
        ways = ([*_parts(system, groups, candidate.partners)] for groups in candidate.groups)
        yield from next((moves for moves in ways if moves), ())


@dataclass(frozen=True)
class _Candidate:
    """A weight that may be several in one."""

    partners: Sequence[Knob]  # what may make up for a part of it
    groups: Sequence[Sequence[Knob]]  # its rows, with those of its bias, for each dimension that it may be split along


def _candidate(block: _Block, weight: Knob, moved: Collection[str]) -> _Candidate:
    others = [knob for knob in _partners(block, weight) if knob.target not in moved]
    biases = [knob for knob in others if _is_bias_of(knob, weight)]
    partners = [knob for knob in others if knob not in biases and _preference(block, knob) < 3]
    of_biases = [group for bias in biases for group in _groups(block, bias, -1)]
    dims = _outer_dims(block, weight, biases)
    return _Candidate(partners, [[*_groups(block, weight, dim), *of_biases] for dim in dims])


def _parts(system: System, groups: Sequence[Knob], partners: Sequence[Knob]) -> Iterator[list[Move]]:
    """Yield the moves of some of the groups with what makes up for them."""
    index = system.index()
    columns = [index[group] for group in groups]
    for partner in partners:
        for support, power in _supports(system.matrix, columns, index[partner]):
            moves = _joined(groups, [groups[at] for at in support], system)
            if moves is not None:
                yield [*moves, Move(partner.part, partner.target, power)]


def _outer_dims(block: _Block, weight: Knob, biases: Sequence[Knob]) -> tuple[int, ...]:
    """Return along which dimension a weight may be several weights in one; both where nothing tells."""
    module = block.module.get_submodule(weight.module.removeprefix(block.name).removeprefix("."))
    if isinstance(module, nn.Linear):
        return (-2,)
    shape = _parameter(block, weight).shape
    outer = tuple(dim for dim in (-2, -1) if any(shape[dim] == _parameter(block, bias).shape[-1] for bias in biases))
    return outer or (-2, -1)


def _groups(block: _Block, knob: Knob, dim: int) -> list[Knob]:
    """Return the rows of a parameter along `dim`, by eights, the even ones and the odd ones apart."""
    size = _parameter(block, knob).shape[dim]
    width = math.gcd(_GROUP, size // 2) if size % 2 == 0 else 1
    parities = (0, 1) if width % 2 == 0 else (0,)
    return [
        replace(knob, rows=Rows(dim, start / size, (start + width) / size, parity, len(parities)))
        for start in range(0, size, width)
        for parity in parities
    ]


def _supports(matrix: Tensor, columns: Sequence[int], partner: int) -> Iterator[tuple[list[int], int]]:
    """Yield sets of columns (by their places) that, halved, are made up for by a whole power of the partner."""
    wanted = matrix[:, partner]
    live = [at for at, number in enumerate(columns) if float(matrix[:, number].norm()) > _FITS]
    if float(wanted.norm()) < _FITS or not live:
        return
    rows = matrix[:, [columns[at] for at in live]]
    # The smallest solution is alike where rows play the same role, and zero where they play none.
    shares = torch.linalg.lstsq(rows, wanted[:, None], rcond=1e-10, driver="gelsd").solution[:, 0]
    if float((rows @ shares - wanted).norm()) > _FITS * float(wanted.norm()):
        return
    for share in dict.fromkeys(round(value, 5) for value in shares.tolist()):
        support = [at for at, value in zip(live, shares.tolist(), strict=True) if abs(value - share) < 1e-4]
        together = matrix[:, [columns[at] for at in support]].sum(1)
        power = float(together @ wanted / (wanted @ wanted))
        if abs(power) < 0.5 or abs(power - round(power)) > 1e-4:
            continue
        if float((together - round(power) * wanted).norm()) <= _FITS * float(together.norm()):
            yield support, round(power)


def _joined(groups: Sequence[Knob], support: Sequence[Knob], system: System) -> list[Move] | None:
    """Return one move for each parameter that `support` has rows of.

    None where the rows do not lie together, so that another number of heads may spread them otherwise, or are all.
    """
    moves: list[Move] = []
    for target in dict.fromkeys(knob.target for knob in groups):
        every = [knob for knob in groups if knob.target == target]
        own = [knob.rows for knob in every if knob in support and knob.rows is not None]
        if not own and moves:
            own = _idle_rows(every, moves[0], system)  # of the bias: what is halved is halved as a whole
        if not own:
            continue
        offsets = {one.offset for one in own}
        start, stop, step = min(one.start for one in own), max(one.stop for one in own), own[0].step
        together = round((stop - start) * len(every) / step) * len(offsets)
        if len(own) in (len(every), 0) or len(own) != together:
            return None
        rows = Rows(own[0].dim, start, stop, *(() if len(offsets) == step else (offsets.pop(), step)))
        moves.append(Move(Part.WEIGHT, target, -1, rows))
    return moves


def _idle_rows(groups: Sequence[Knob], moved: Move, system: System) -> list[Rows]:
    """Return the rows of a bias that belong to the moved ones of its weight, if none of them changes anything."""
    index, rows = system.index(), moved.rows
    if rows is None:
        return []
    inside = [
        knob for knob in groups
        if knob.rows is not None and rows.start - 1e-9 <= knob.rows.start and knob.rows.stop <= rows.stop + 1e-9
        and (rows.step == 1 or knob.rows.offset == rows.offset)
    ]  # fmt: skip
    if any(float(system.matrix[:, index[knob]].norm()) > _FITS for knob in inside):
        return []
    return [knob.rows for knob in inside if knob.rows is not None]


def _pattern(moves: Iterable[Move], block: _Block, roles: Roles) -> Pattern:
    start = f"{block.name}."
    return frozenset(replace(move, target=roles.role_of(move.target.removeprefix(start))) for move in moves)


def _placed(pattern: Pattern, block: _Block, roles: Roles) -> Iterator[Move]:
    for move in sorted(pattern, key=str):
        for name in roles.members.get((move.part, move.target), ()):
            yield replace(move, target=f"{block.name}.{name}")


def _name(pattern: Pattern) -> str:
    """Return a name that tells what becomes smaller, and what makes up for it."""
    smaller = [move for move in pattern if move.power < 0 and not _is_eps(move)]
    others = [move for move in pattern if move not in smaller]
    return " / ".join(
        "+".join(dict.fromkeys(_short(move) for move in sorted(moves, key=str))) for moves in (smaller, others)
    )


def _short(move: Move) -> str:
    owner, _, name = move.target.rpartition(".")
    if name in ("weight", "bias") and owner:
        name = owner
    elif owner:
        name = f"{owner}.{name.removesuffix('_bias')}"
    if move.rows is None:
        return name
    every = f" by {move.rows.step}" if move.rows.step > 1 else ""
    return f"{name}[{move.rows.start:.0%}:{move.rows.stop:.0%}{every}]"


def _is_eps(move: Move) -> bool:
    return move.part is Part.NUMBER and "eps" in move.target.rpartition(".")[2]


def _is_bias(knob: Knob) -> bool:
    return "bias" in knob.target.rpartition(".")[2]


def _is_bias_of(knob: Knob, weight: Knob) -> bool:
    """Whether this is the bias that belongs to a weight: "bias" to "weight", "up_proj_bias" to "up_proj"."""
    name, of = knob.target.rpartition(".")[2], weight.target.rpartition(".")[2]
    return knob.module == weight.module and _is_bias(knob) and (name == "bias" or name.startswith(of))


def _parameter(block: _Block, knob: Knob) -> nn.Parameter:
    return block.module.get_parameter(knob.target.removeprefix(f"{block.name}."))


def _dims(block: _Block, knob: Knob) -> int:
    return _parameter(block, knob).dim()


def _place_in_module(block: _Block, knob: Knob) -> int:
    path, _, name = knob.target.removeprefix(f"{block.name}.").rpartition(".")
    return list(dict(block.module.get_submodule(path).named_parameters(recurse=False))).index(name)
