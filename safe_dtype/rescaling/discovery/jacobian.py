"""How the outputs of a twin's blocks, and in the end its logits, change with every knob: one homogeneous linear system.

A twin is cut at the borders of its blocks. What a block returns depends on the knobs inside and on what it was given;
let x be the powers by which the knobs are multiplied, and t those by which the hidden states at the cuts become larger.
To first order a cotangent c on what the block returns, H, says

    sum over knobs <c, dH / d log knob> x  +  sum over cuts before it <c, dH / d log cut> t  -  <c, H> t of H  =  0,

and for the logits the same without the last term: they are to stay. Every exact rescaling solves all of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .knobs import Knob, turned
from .norms import DifferentiableNorms
from .trace import Stack, with_first, with_first_given
from .twin import Twin, run_twin

# Hidden clamps are reached with large weights only, and with small ones nothing is small beside its bias.
GAINS = (1.0, 0.3, 8.0)
_SPARE_ROWS = 12  # equations beyond the unknowns: a chance solution would have to fit these too
_MOST_ELEMENTS = 1_000_000  # of the gradients that are computed at once: about what a cache holds


@dataclass(frozen=True, slots=True)
class Cut:
    """A hidden state at the border of a block."""

    block: str
    side: str  # "in" or "out"
    call: int  # of the block


Column = Knob | Cut


@dataclass(frozen=True)
class System:
    """Equations, homogeneous, in the unknowns that `columns` names."""

    columns: tuple[Column, ...]
    matrix: Tensor  # (equations, columns), float64; each equation of length 1
    ends: tuple[Cut | None, ...]  # for each equation, what it is about: None for the logits

    def index(self) -> dict[Column, int]:
        """Return at which place each unknown stands."""
        return {column: place for place, column in enumerate(self.columns)}


@dataclass
class _Cuts:
    """The cuts of one run: what came in at each, and the leaf that went on from there."""

    reached: dict[Cut, Tensor] = field(default_factory=dict)
    leaves: dict[Cut, Tensor] = field(default_factory=dict)
    gone_on: dict[int, Cut] = field(default_factory=dict)  # by the id of the tensor that went on
    alive: list[Tensor] = field(default_factory=list)  # so that no id is used twice

    def cut(self, tensor: Tensor, block: str, side: str) -> Tensor:
        """Return what goes on instead of `tensor`; a tensor that was cut already goes on itself."""
        if id(tensor) in self.gone_on:
            return tensor
        calls = sum(1 for one in self.leaves if one.block == block and one.side == side)
        cut = Cut(block, side, calls)
        leaf = tensor.detach().requires_grad_()
        on = leaf.clone()  # modelling code may add to it in place
        self.reached[cut], self.leaves[cut], self.gone_on[id(on)] = tensor, leaf, cut
        self.alive.append(on)
        return on


def system_of(
    twin: Twin,
    knobs: Sequence[Knob],
    stacks: Iterable[Stack],
    *,
    about: Collection[Knob] | None = None,
    together: int | None = None,
) -> System:
    """Return the equations of a twin, with weights of several sizes, in all of `knobs` and in its cuts.

    Args:
        twin: It comes back as it was.
        knobs: Unknowns.
        stacks: Where to cut.
        about: Leave out equations in which none of these occurs; None for all equations.
        together: Of how many unknowns at once the system will be asked; None for all that an equation has.
    """
    blocks = tuple(block for stack in stacks for block in stack.blocks)
    equations = [
        _equations(
            twin.model, twin.batches[number % len(twin.batches)], Unknowns(tuple(knobs), together), blocks, gain, about
        )
        for number, gain in enumerate(GAINS)
    ]
    cuts = tuple(dict.fromkeys(cut for _, own, _ in equations for cut in own))
    columns: tuple[Column, ...] = (*knobs, *cuts)
    place: dict[Column, int] = {column: at for at, column in enumerate(columns)}
    matrices = []
    for rows, own, _ in equations:
        wide = torch.zeros(len(rows), len(columns), dtype=torch.float64)
        unknowns: tuple[Column, ...] = (*knobs, *own)
        wide[:, [place[column] for column in unknowns]] = rows
        matrices.append(wide)
    return System(columns, torch.cat(matrices), tuple(end for _, _, ends in equations for end in ends))


@dataclass
class Unknowns:
    """The unknowns of one run, and the leaves of the graph that they belong to: rows of a parameter share one."""

    knobs: tuple[Knob, ...]
    together: int | None = None
    leaves: list[Tensor] = field(default_factory=list)
    owners: list[list[int]] = field(default_factory=list)  # for each leaf, the places of its unknowns
    count: int = 0

    def place(self, turned_leaves: Mapping[Knob, Tensor], cuts: Iterable[Tensor]) -> None:
        """Give every knob its leaf, and then every cut."""
        by_leaf: dict[int, int] = {}
        for leaf in (*(turned_leaves[knob] for knob in self.knobs), *cuts):
            if id(leaf) not in by_leaf:
                by_leaf[id(leaf)] = len(self.leaves)
                self.leaves.append(leaf)
                self.owners.append([])
            self.owners[by_leaf[id(leaf)]].append(self.count)
            self.count += 1

    def spread(self, gradients: Sequence[Tensor], reached: Sequence[int]) -> Tensor:
        """Return the derivatives (n, unknowns) by logarithms, from gradients (n, *shape) of the leaves `reached`."""
        derivatives = torch.zeros(len(gradients[0]), self.count, dtype=torch.float64)
        for number, gradient in zip(reached, gradients, strict=True):
            leaf = self.leaves[number].detach()
            product = gradient * leaf
            for place in self.owners[number]:
                rows = self.knobs[place].rows if place < len(self.knobs) else None
                if rows is None:
                    derivatives[:, place] = product.reshape(len(derivatives), -1).sum(1)
                else:
                    index = [slice(None)] * product.dim()
                    index[rows.dim] = rows.of(leaf.shape[rows.dim])
                    derivatives[:, place] = product[tuple(index)].reshape(len(derivatives), -1).sum(1)
        return derivatives

    def leaves_of(self, knobs: Collection[Knob]) -> set[int]:
        """Return the numbers of the leaves that any of `knobs` belongs to."""
        places = {place for place, knob in enumerate(self.knobs) if knob in knobs}
        return {number for number, owned in enumerate(self.owners) if places.intersection(owned)}


def _equations(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    unknowns: Unknowns,
    blocks: Sequence[str],
    gain: float,
    about: Collection[Knob] | None,
) -> tuple[Tensor, tuple[Cut, ...], list[Cut | None]]:
    """Return equations (n, knobs + cuts), the cuts, and what each equation is about."""
    random = torch.Generator().manual_seed(round(1000 * gain))
    cuts = _Cuts()
    rows: list[Tensor] = []
    ends: list[Cut | None] = []
    with torch.enable_grad(), turned(model, unknowns.knobs, gain) as leaves, _cut_at(model, blocks, cuts):
        with DifferentiableNorms():
            outputs = run_twin(model, batch)
        unknowns.place(leaves, cuts.leaves.values())
        places = {cut: len(unknowns.knobs) + at for at, cut in enumerate(cuts.leaves)}
        wanted = None if about is None else unknowns.leaves_of(about)
        for end, value in (*cuts.reached.items(), (None, outputs)):
            if not value.requires_grad:
                continue
            for cotangents, row in _rows(value, unknowns, random, wanted):
                if end is not None:
                    row[:, places[end]] -= cotangents.flatten(1) @ value.detach().flatten()
                rows.append(row)
                ends += [end] * len(row)
    matrix = torch.cat(rows) if rows else torch.zeros(0, unknowns.count, dtype=torch.float64)
    return matrix / matrix.norm(dim=1, keepdim=True).clamp_min(1e-300), tuple(cuts.leaves), ends


def _rows(
    value: Tensor, unknowns: Unknowns, random: torch.Generator, wanted: set[int] | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random cotangents on `value` (n, *shape) with the derivatives by the logarithms of all unknowns (n, m)."""

    def draw(count: int) -> Tensor:
        return torch.randn((count, *value.shape), generator=random, dtype=torch.float64)

    first = draw(1)
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        value, unknowns.leaves, first[0], retain_graph=True, allow_unused=True
    )
    reached = [number for number, one in enumerate(gradients) if one is not None]
    if wanted is not None and not wanted.intersection(reached):
        return
    leaves = [unknowns.leaves[number] for number in reached]
    yield first, unknowns.spread([one[None] for one in gradients if one is not None], reached)
    wide = sum(len(unknowns.owners[number]) for number in reached)
    wide = wide if unknowns.together is None else min(wide, unknowns.together)
    left = -(-(wide + _SPARE_ROWS) // len(GAINS)) - 1  # the other sizes of weights give the rest
    at_once = max(1, _MOST_ELEMENTS // (sum(one.numel() for one in leaves) + value.numel()))
    while left > 0:
        cotangents = draw(min(at_once, left))
        left -= len(cotangents)
        yield cotangents, unknowns.spread(_batched(value, leaves, cotangents), reached)


def _batched(value: Tensor, leaves: Sequence[Tensor], cotangents: Tensor) -> Sequence[Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # operations that have no batching rule are done one by one
            return torch.autograd.grad(value, leaves, cotangents, retain_graph=True, is_grads_batched=True)
    except (RuntimeError, NotImplementedError):
        one_by_one = [torch.autograd.grad(value, leaves, one, retain_graph=True) for one in cotangents]
        return [torch.stack(ones) for ones in zip(*one_by_one, strict=True)]


@contextmanager
def _cut_at(model: nn.Module, blocks: Iterable[str], cuts: _Cuts) -> Iterator[None]:
    handles = []
    for path in blocks:

        def enter(_module: nn.Module, args: Any, kwargs: Any, path: str = path) -> Any:
            return with_first_given(args, kwargs, lambda first: cuts.cut(first, path, "in"))

        def leave(_module: nn.Module, _args: Any, output: Any, path: str = path) -> Any:
            return with_first(output, lambda first: cuts.cut(first, path, "out"))

        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
