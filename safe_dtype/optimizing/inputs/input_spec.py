"""What one input of a model may hold, and how batches of it are drawn, in other values, masks and sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ...errors import NotOptimizableError

OWN_INPUTS = "pass inputs=... or --inputs FILE, a safetensors file of one batch as the model takes it"


class InputKind(str, Enum):
    """What the numbers of an input are."""

    IDS = "ids"  # of a vocabulary
    TYPES = "types"  # numbers of the segments of a text, which rise along a row
    ROWS = "rows"  # integers that belong together along the last dimension, like the corners of a box
    MASK = "mask"  # one, and zero where the model must not look
    FLAGS = "flags"  # zero, and one where something is switched on
    VALUES = "values"  # floats
    FIXED = "fixed"  # of unknown meaning: used as in the example


class Shown(str, Enum):
    """How much the masks of a batch let through."""

    ALL = "all"
    PART = "part"  # all of the first row, less and less of the others
    ONE = "one"  # the first token of every row


@dataclass(frozen=True, slots=True, eq=False)  # tensors do not compare
class Slot:
    """One input. `dims` has a size for every dimension, or a name: dimensions of one name have one size."""

    name: str
    kind: InputKind
    dims: tuple[str | int, ...]
    dtype: torch.dtype
    low: int = 0  # the smallest and the largest integer, both included
    high: int = 1
    avoid: tuple[int, ...] = ()  # integers between them that are not drawn
    hidden_by: str = ""  # the mask that hides it, of the same shape
    padding: int | None = None  # the value where it is hidden; None leaves what was drawn
    example: Tensor | None = None  # what to draw from; without it floats are standard normal

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return its shape in a batch of these sizes."""
        return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in self.dims)


@dataclass(frozen=True, slots=True)
class Variation:
    """How a batch differs from one that only has other random numbers."""

    scale: float = 1.0  # of floats, around their mean
    shift: float = 0.0  # of floats, in their standard deviations
    shown: Shown = Shown.ALL
    repeated: bool = False  # one id in each row: every token goes to the same experts, and to no others

    def about(self, slots: Iterable[Slot]) -> str:
        """Return what it changes in these inputs, in words; empty where it changes nothing."""
        slots = list(slots)
        kinds = {slot.kind for slot in slots}
        words = []
        if InputKind.VALUES in kinds and self.shift:
            mirrored = "mirrored" if self.scale < 0 else f"{self.scale:g} of the contrast"
            words.append(f"values {mirrored} and shifted {'up' if self.shift > 0 else 'down'}")
        if InputKind.MASK in kinds and self.shown is not Shown.ALL:
            texts = any(slot.kind is InputKind.MASK and len(slot.dims) == 2 for slot in slots)
            words.append("padded to one token" if texts and self.shown is Shown.ONE else "padded")
        if InputKind.FLAGS in kinds and self.shown is not Shown.ALL:
            words.append("first position flagged")
        if InputKind.IDS in kinds and self.repeated:
            words.append("one id repeated")
        return ", ".join(words)


PLAIN = Variation()
# A branch on the sign of a sum sees a shift to either side; a branch on a mask sees each kind of padding.
VARIATIONS = (
    Variation(scale=0.25, shift=-1.0, shown=Shown.PART),
    Variation(scale=-1.0, shift=1.0, shown=Shown.ONE),
    Variation(repeated=True),
)


def draw(slots: Iterable[Slot], sizes: Mapping[str, int], variation: Variation, seed: int) -> dict[str, Tensor]:
    """Return one batch, on the CPU. The same arguments give the same numbers."""
    random = torch.Generator().manual_seed(seed)
    slots = list(slots)
    tensors = {slot.name: _drawn(slot, slot.shape(sizes), variation, random) for slot in slots}
    for slot in slots:
        if slot.padding is not None and (mask := tensors.get(slot.hidden_by)) is not None:
            tensors[slot.name] = tensors[slot.name].masked_fill(mask == 0, slot.padding)
    return tensors


def _drawn(slot: Slot, shape: tuple[int, ...], variation: Variation, random: torch.Generator) -> Tensor:
    if slot.kind is InputKind.VALUES:
        return _values(slot, shape, variation, random)
    if slot.kind is InputKind.ROWS:
        return _rows(slot, shape, random)
    if slot.kind is InputKind.MASK:
        return _mask(slot, shape, variation.shown)
    if slot.kind is InputKind.FLAGS:
        flags = torch.zeros(shape, dtype=slot.dtype)
        flags[:, 0] = variation.shown is not Shown.ALL
        return flags
    if slot.kind is InputKind.FIXED:
        return _as_given(slot, shape)
    ids = _ids(slot, (shape[0], *(1 for _ in shape[1:])) if variation.repeated else shape, random).expand(shape)
    return (ids.sort(dim=-1).values if slot.kind is InputKind.TYPES else ids).contiguous()


def _ids(slot: Slot, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    avoid = sorted({one for one in slot.avoid if slot.low <= one <= slot.high})
    if slot.high - slot.low + 1 - len(avoid) < 2:
        avoid = []  # too few are left: draw from all
    ids = torch.randint(slot.low, slot.high + 1 - len(avoid), shape, generator=random)
    for avoided in avoid:  # in rising order, so that each step leaves a gap where an id is avoided
        ids += ids >= avoided
    return ids.to(slot.dtype)


def _values(slot: Slot, shape: tuple[int, ...], variation: Variation, random: torch.Generator) -> Tensor:
    if slot.example is None:
        return (torch.randn(shape, generator=random) * variation.scale + variation.shift).to(slot.dtype)
    pool = slot.example.flatten().double()
    if not pool.numel():
        return torch.zeros(shape, dtype=slot.dtype)
    drawn = pool[torch.randint(pool.numel(), shape, generator=random)]
    finite = pool[pool.isfinite()]
    if variation == PLAIN or not finite.numel():
        return drawn.to(slot.dtype)
    mean, deviation = finite.mean(), finite.std(correction=0)
    varied = mean + variation.scale * (drawn - mean) + variation.shift * deviation
    # Inside of the example's range: the model may not accept other values. Infinities are masks, and stay.
    return torch.where(drawn.isfinite(), varied.clamp(finite.min(), finite.max()), drawn).to(slot.dtype)


def _rows(slot: Slot, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    if slot.example is None or shape[-1:] != slot.example.shape[-1:]:
        return _as_given(slot, shape)
    rows = slot.example.reshape(-1, shape[-1])
    return rows[torch.randint(len(rows), shape[:-1], generator=random)]


def _mask(slot: Slot, shape: tuple[int, ...], shown: Shown) -> Tensor:
    if shown is Shown.ALL:
        if slot.example is not None and tuple(slot.example.shape) == shape:
            return slot.example.clone()
        return torch.ones(shape, dtype=slot.dtype)
    mask = torch.zeros(shape, dtype=slot.dtype)
    batch = shape[0]
    for row in range(batch):
        # From the whole to a half: less of an image may be smaller than a patch. A batch of one row is halved.
        share = 1 - row / (2 * (batch - 1)) if batch > 1 else 0.5
        only_first = shown is Shown.ONE and len(shape) == 2
        mask[row][tuple(slice(0, 1 if only_first else math.ceil(share * size)) for size in shape[1:])] = 1
    return mask


def _as_given(slot: Slot, shape: tuple[int, ...]) -> Tensor:
    if slot.example is None or tuple(slot.example.shape) != shape:
        source = "without an example" if slot.example is None else f"from one of shape {tuple(slot.example.shape)}"
        raise NotOptimizableError(
            f"{slot.name} is needed in shape {shape}, and cannot be made {source}: its meaning is not known",
            "leave its dimensions, and those that must be equal to them, out of the ranges",
        )
    return slot.example.clone()
