"""Bring a model's activations into float16's range: which gauges, by how many bits, and what is left for islands."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import RescaleError
from ...facts import (
    FLOAT16,
    LEAST_SPARE_BITS,
    MOST_BITS_FOR_ROOM,
    BlockPeak,
    Gauge,
    HalfRange,
    Move,
    Part,
    Rescale,
    factor_of,
)
from ...models.recast import main_dtype
from ...rendering.units import size_text
from ...verifying.outputs import batch_for
from ..folding.fold import Fold
from ..lost_bits import require_folded_bits_kept
from .norm_bound import certified_bound
from .overflow import shows
from .peaks import KNOWN_LIMIT, Peak, Peaks, record_peaks, together

logger = logging.getLogger(__name__)

# Bits of room above the largest number seen: a text of the user's own may reach further than ours, and on real models
# the peak of one module varies up to 13-fold from text to text.
_SPARE_BITS = 5

AIM = FLOAT16.largest / 2**_SPARE_BITS
LIMIT = FLOAT16.largest / 2**LEAST_SPARE_BITS

_ROUNDING = 2.0  # what sums of rounded numbers may add to a bound, generously
_BATCHES_TRIED = 2
_NOISE = 1.1  # rounding differs where sums are reordered

Batches = Sequence[Mapping[str, Any]]


def fit_to_half(
    model: nn.Module, batches: Batches, gauges: Iterable[Gauge], *, blocks: Iterable[str] = (), problem: str = ""
) -> tuple[HalfRange, tuple[str, ...]]:
    """Return what it takes for `model` to run in float16, nobody having looked at its drift, and doubtful islands.

    Doubtful are those around numbers that did leave float16's range: a drift that is small without such an island
    shows that they do no harm. The others are there to keep room. The model comes back as it was.

    Args:
        model: In bfloat16 or float32, where everything is in range.
        batches: What to run it on. It runs a few times.
        gauges: Exact rescalings of its architecture, in the order in which to try them.
        blocks: Names of the modules whose peaks are kept for the record.
        problem: Why there are no gauges, where there are none.
    """
    names = tuple(blocks)
    search = _Search(model, batches, names)
    before = search.peaks
    largest, plain = before.largest, before.blocks
    if before.nonfinite or largest is None:
        return HalfRange(math.inf, math.inf, problem=f"there is NaN or infinity in {search.dtype} already"), ()
    try:
        search.narrow()
        for gauge in gauges:
            if search.is_relevant(gauge):
                search.try_gauge(gauge)
        certified = search.certified
        rescale = search.fold.rescale if search.fold.rescale.shifts else None
        search.widen(names)
        rescaled = search.peaks.blocks
        islands, why = search.islands()
        in_range = (one for one in search.peaks.beyond(0.0) if one not in search.harmless)
        left = max((one.largest for one in in_range if not _inside(one.module, islands)), default=0.0)
    finally:
        search.fold.undo()
    block_peaks = tuple(BlockPeak(name, plain[name], rescaled[name]) for name in names if name in plain)
    reasons = "; ".join(filter(None, (problem, search.refused)))
    text = f"{why} ({reasons})" if why and reasons else why
    doubtful = tuple(name for name in islands if name in search.overflown)
    half = HalfRange(largest.largest, left, block_peaks, rescale, islands, problem=text, certified=certified)
    return half, doubtful


def bits_for(peak: float) -> int:
    """Return by how many bits `peak` has to shrink; with fewer to spare where that would take too many."""
    wanted = math.ceil(math.log2(peak / AIM)) if peak > AIM else 0
    least = math.ceil(math.log2(peak / LIMIT)) if peak > LIMIT else 0
    return max(least, min(wanted, MOST_BITS_FOR_ROOM))


def _bits_that_make_sure(bound: float | None) -> int:
    """Return by how many bits a hidden state with this bound has to shrink; 0 where that would be too many."""
    bits = math.ceil(math.log2(bound * _ROUNDING / FLOAT16.largest)) if bound else 0
    return max(0, bits) if bits <= MOST_BITS_FOR_ROOM else 0


class _Search:
    """A model, what is folded into it so far, and the peaks with that."""

    def __init__(self, model: nn.Module, batches: Batches, blocks: tuple[str, ...]) -> None:
        self.model = model
        self.batches = [batch_for(model, one) for one in batches]
        self.dtype = main_dtype(model) or torch.float32
        self.fold = Fold(model)
        self._by_batch = [record_peaks(model, [one], self.dtype, blocks=blocks) for one in self.batches]
        self._tried_on = tuple(range(len(batches)))
        self.peaks = together(self._by_batch)
        self.certified: float | None = None  # the largest bound of a stream that is rescaled, where all have one
        self.overflown: set[str] = set()  # islands around what float16 cannot hold, whatever the room
        self.harmless: frozenset[Peak] = frozenset()  # out of range, and no result shows it
        self.refused = ""  # why a gauge that would help is not used

    def narrow(self) -> None:
        """Look from now on at the one or two batches with the largest and the most peaks: gauges are tried there."""
        tops = [max(self._tried_on, key=lambda batch: self._by_batch[batch].of(one)) for one in self.peaks.beyond(AIM)]
        # That of the largest first: the bits follow from it.
        chosen = [*tops[:1], *(batch for batch, _ in Counter(tops).most_common())]
        self._tried_on = tuple(dict.fromkeys(chosen))[:_BATCHES_TRIED]
        self.peaks = together([self._by_batch[batch] for batch in self._tried_on])

    def widen(self, blocks: tuple[str, ...]) -> None:
        """Look at all batches, with what is folded in now."""
        self._tried_on = tuple(range(len(self.batches)))
        self.peaks = self.measure(blocks) if self.fold.rescale.shifts else together(self._by_batch)

    def is_relevant(self, gauge: Gauge) -> bool:
        """Whether anything is out of range near what the gauge makes smaller."""
        over = {one.module for one in self.peaks.beyond(AIM)}
        if any(move.part is Part.INPUT and move.power < 0 for move in gauge.moves):
            return bool(over)  # a hidden state passes everywhere
        near = {_around(move) for move in gauge.moves if move.power < 0}
        return any(_inside(module, near) for module in over)

    def try_gauge(self, gauge: Gauge) -> None:
        """Move by `gauge` as far as what it makes smaller needs; not at all where it does not help, or does harm."""
        over, before = self.peaks.beyond(AIM), self.fold.rescale
        bound = certified_bound(self.model, gauge, self.batches[0])
        sure = _bits_that_make_sure(bound)
        bits = max(bits_for(over[0].largest), sure)
        try:
            self.fold.move_to(Rescale((*before.shifts, (gauge, bits))))
        except RescaleError as exc:
            logger.info("%s does not apply: %s", gauge.name, exc.problem)
            return
        peaks = self.measure()
        helped = [peak for peak in over if peaks.of(peak) <= peak.largest * 2.0**-bits * _NOISE]
        moved_by = self._move_as_far(gauge, before, helped, sure) if helped else 0
        peaks = peaks.scaled(helped, 2.0 ** (bits - moved_by))
        if not moved_by or self._is_worse(peaks, gauge):
            self.fold.move_to(before)
            return
        self.peaks = peaks
        if bound is not None and 0 < sure <= moved_by:
            self.certified = max(bound, self.certified or 0.0)

    def _move_as_far(self, gauge: Gauge, before: Rescale, peaks: Sequence[Peak], sure: int) -> int:
        """Move by as many bits as `peaks` need, by fewer where a weight would lose too much; 0 where too few are left."""
        wanted, least = max(sure, *map(self._bits_of, peaks)), max(1, *map(self._least_bits_of, peaks))
        problem = ""
        for bits in range(wanted, least - 1, -1):
            self.fold.move_to(Rescale((*before.shifts, (gauge, bits))))
            try:
                require_folded_bits_kept(self.fold)
            except RescaleError as exc:
                problem = f"{gauge.name} {factor_of(bits)} would help, but {exc.problem}"
                logger.info(problem)
            else:
                return bits
        self.refused = problem
        return 0

    def islands(self) -> tuple[tuple[str, ...], str]:
        """Return the smallest modules around what is still out of range, and why that is not all, where it is not."""
        over = [one.module for one in self.peaks.beyond(LIMIT)]
        wide = [name.rpartition(".")[0] for name in wide_weights(self.model)]
        over += wide
        around = [_ancestors(name) for name in dict.fromkeys(over)]
        peaks = self.measure(tuple(dict.fromkeys(name for names in around for name in names))) if around else None
        islands: list[str] = []
        alone: list[str] = []  # modules out of range that have no island around them
        for names in around:
            # A list of modules returns nothing, and a model in the model no single hidden state: neither is an island.
            returned = {name: peaks.blocks.get(name, math.inf) for name in names if name} if peaks else {}
            island = next((name for name, largest in returned.items() if largest <= LIMIT), None)
            if island is None and names[0] in wide:
                return (), self._why(names[0])
            if island is None:
                alone.append(names[0])
                continue
            islands.append(island)
            if any(one.largest > FLOAT16.largest for one in self.peaks.beyond(LIMIT) if one.module == names[0]):
                self.overflown.add(island)
        self.harmless = frozenset(peak for peak in self.peaks.beyond(LIMIT) if peak.module in alone)
        if self.harmless and shows(self.model, self._batches(), self.dtype, self.harmless, LIMIT):
            return (), self._why(alone[0])
        return tuple(name for name in dict.fromkeys(islands) if not _inside(name.rpartition(".")[0], islands)), ""

    def measure(self, blocks: tuple[str, ...] = ()) -> Peaks:
        """Return the peaks with what is folded in now."""
        return record_peaks(self.model, self._batches(), self.dtype, blocks=blocks)

    def _batches(self) -> Batches:
        return [self.batches[batch] for batch in self._tried_on]

    def _bits_of(self, peak: Peak) -> int:
        # What is known exactly needs no room, and small numbers lose the less the less they are moved.
        return self._least_bits_of(peak) if self._is_known(peak) else bits_for(peak.largest)

    def _least_bits_of(self, peak: Peak) -> int:
        limit = KNOWN_LIMIT if self._is_known(peak) else LIMIT
        return max(0, math.ceil(math.log2(peak.largest / limit)))

    def _is_known(self, peak: Peak) -> bool:
        return (peak.module, peak.op) in self.peaks.known

    def _is_worse(self, peaks: Peaks, gauge: Gauge) -> bool:
        grown = {move.target for move in gauge.moves if move.part is Part.WEIGHT and move.power > 0}
        return any(peak.largest > self._before(peak) * _NOISE for peak in peaks.beyond(AIM)) or any(
            name in grown for name in wide_weights(self.model, grown)
        )

    def _before(self, peak: Peak) -> float:
        """Return the peak of the same operation; of one that is new, as what a norm with a shift returns, its module's."""
        same = [value for (module, _), value in self.peaks.operations.items() if module == peak.module]
        return self.peaks.of(peak) or max(same, default=0.0)

    def _why(self, module: str) -> str:
        """Return what is out of range in a module that has no island around it."""
        over = next((one for one in self.peaks.beyond(LIMIT) if one.module == module), None)
        name = module or type(self.model).__name__
        return (
            f"activations reach {size_text(over.largest)} in {name}" if over else f"{name} has weights beyond float16"
        )


def wide_weights(model: nn.Module, names: Iterable[str] | None = None) -> Iterator[str]:
    """Yield the names of the parameters, of those called `names`, that hold a number beyond float16's range."""
    wanted = None if names is None else set(names)
    for name, parameter in model.named_parameters():
        if (
            (wanted is None or name in wanted)
            and parameter.is_floating_point()
            and not parameter.is_meta
            and parameter.numel()
        ):
            smallest, largest = parameter.detach().aminmax()
            if max(-smallest.item(), largest.item()) > FLOAT16.largest:
                yield name


def _around(move: Move) -> str:
    """Return the name of the module around the one that a move is about."""
    module = move.target if move.part in (Part.INPUT, Part.OUTPUT) else move.target.rpartition(".")[0]
    return module.rpartition(".")[0]


def _ancestors(name: str) -> list[str]:
    """Return the module's own name and those of the modules around it, innermost first; the whole model is ""."""
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def _inside(name: str, modules: Iterable[str]) -> bool:
    return bool(set(_ancestors(name)) & set(modules))
