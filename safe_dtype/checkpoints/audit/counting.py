"""Count what float16 would make of the numbers in a file, at about a quarter of the speed that memory is read with.

The numbers are looked at as integers: without the sign bit, a larger integer is a larger number, so that every limit
is one comparison. Three passes over a chunk that stays in the processor's cache are enough for almost all numbers: take off
the sign, find the largest, mark the few below a threshold. Only those few are looked at one by one. The threshold
follows each tensor, to have about `_FEW` of its numbers below it: then the histogram is exact where it matters, on the
side of underflow. Of the others a sample tells how they spread.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .census import OVERFLOWS_AT, SMALLEST, SMALLEST_NORMAL, Census

_Words: TypeAlias = NDArray[Any]  # unsigned integers of one width: the bits of the numbers

CHUNK_BYTES = 512 * 1024  # with its two scratch arrays it fits the second-level cache
_WINDOW_BYTES = 16 * 1024 * 1024  # mapped at a time: what this process holds of a file, however long that is
_FEW = 1 / 500  # of the numbers: up to here, picking them out costs no more than a pass over all
_BLOCK, _EVERY = 512, 64  # of a long chunk, the first of every 64 blocks of 512 numbers is sampled
_MANY = 1 << 14  # numbers picked out, or sampled, that are looked at together
_HIGHEST_THRESHOLD = 15  # as a power of two: nothing below it overflows
_DEEPEST = 1023  # what float64's exponents are stored with: numbers below 2**-1022 count as if at 2**-1023


@dataclass(frozen=True)
class BitLayout:
    """The bits of one floating-point format."""

    word: str  # numpy's name of the unsigned integer of its width, in the byte order of safetensors
    fraction_bits: int
    bias: int
    number: str  # numpy's name of the format that the bits, moved up by `shift`, are numbers of
    shift: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes per number."""
        return np.dtype(self.word).itemsize

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (8 * self.itemsize - 1)

    @property
    def infinity(self) -> int:
        """The bits of infinity; those of NaN are larger."""
        return (2 * self.bias + 1) << self.fraction_bits

    @property
    def overflow(self) -> int:
        """The bits of the first number that is infinite in float16: of infinity itself, where no other is."""
        # torch takes float64 to float16 by way of float32, which rounds up to the limit what is this close to it.
        limit = OVERFLOWS_AT if self.fraction_bits <= 23 else OVERFLOWS_AT - 2.0**-9
        # Where the fraction is too short for the limit, rounding up goes on to the next power of two.
        return self.bits_of(15) + math.ceil((limit / 2**15 - 1) * (1 << self.fraction_bits))

    @property
    def surplus(self) -> int:
        """The fraction bits that float16 has no room for, as a mask."""
        return (1 << max(0, self.fraction_bits - 10)) - 1

    @property
    def floor(self) -> int:
        """The power of two from which on float16 keeps all the bits it has room for: in its last one, 2**-24."""
        return SMALLEST + min(self.fraction_bits, 10)

    def bits_of(self, exponent: int) -> int:
        """Return the bits of 2**exponent, which must be a normal number."""
        return (exponent + self.bias) << self.fraction_bits

    def numbers(self, words: _Words) -> NDArray[np.float64]:
        """Return the numbers whose bits are `words`."""
        wide: _Words = words.astype(f"<u{np.dtype(self.number).itemsize}")
        numbers: NDArray[np.floating[Any]] = (wide << wide.dtype.type(self.shift)).view(self.number)
        return numbers.astype(np.float64)


LAYOUTS = {
    "bfloat16": BitLayout("<u2", fraction_bits=7, bias=127, number="<f4", shift=16),
    "float16": BitLayout("<u2", fraction_bits=10, bias=15, number="<f2"),
    "float32": BitLayout("<u4", fraction_bits=23, bias=127, number="<f4"),
    "float64": BitLayout("<u8", fraction_bits=52, bias=1023, number="<f8"),
}


def census_of_span(file: FileIO, start: int, stop: int, layout: BitLayout) -> Census:
    """Return the census of the numbers that lie in the bytes `start` to `stop` of a file.

    Raises:
        ValueError: If the file ends before.
    """
    count = _Count(layout, min(CHUNK_BYTES, stop - start) // layout.itemsize)
    for words in _chunks(file, start, stop, layout):
        count.add(words)
    return count.census()


def _chunks(file: FileIO, start: int, stop: int, layout: BitLayout) -> Iterator[_Words]:
    """Yield the words of a span, window by window. A window is unmapped when no words of it are in use."""
    while start < stop:
        before = start % mmap.ALLOCATIONGRANULARITY
        end = min(stop, start + _WINDOW_BYTES)
        mapped = mmap.mmap(file.fileno(), end - start + before, access=mmap.ACCESS_READ, offset=start - before)
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_SEQUENTIAL)
        words = np.frombuffer(mapped, layout.word, offset=before)
        step = CHUNK_BYTES // layout.itemsize
        for first in range(0, words.size, step):
            # A header of odd length misaligns all that follows: numpy reads it right, at the same speed.
            yield words[first : first + step]
        start = end


class _Count:
    """The counts so far of one tensor."""

    def __init__(self, layout: BitLayout, longest: int) -> None:
        self._layout = layout
        self._word = np.dtype(layout.word).type
        self._scratch: _Words = np.empty(longest, layout.word)
        self._spare: _Words = np.empty(longest if layout.surplus else 0, layout.word)
        self._mask: NDArray[np.bool_] = np.empty(longest, bool)
        self._elements = self._zeros = self._overflowing = self._infinite = self._nan = 0
        self._inexact = self._vanishing = 0
        self._overflow, self._without_sign = layout.overflow, self._word(layout.sign - 1)  # as bits
        self._largest, self._smallest = 0, layout.infinity  # as bits; the smallest that is not zero
        self._threshold = layout.floor  # as a power of two
        self._counted_below = _HIGHEST_THRESHOLD  # the lowest threshold so far
        self._few: list[_Words] = []  # the numbers below the threshold, not looked at yet
        self._number_of_few = 0
        self._below = np.zeros(_DEEPEST + _HIGHEST_THRESHOLD, np.int64)  # [k + _DEEPEST]: those in [2**k, 2**(k + 1))
        self._sampled = np.zeros(2 * layout.bias + 2, np.int64)  # [k + bias]: likewise, of the sample
        self._aside: list[_Words] = []  # more of the sample, not counted yet
        self._number_aside = 0
        self._look_again_at = 0  # as a number of elements

    def add(self, words: _Words) -> None:
        """Count the numbers whose bits are `words`."""
        layout, scratch, mask = self._layout, self._scratch[: words.size], self._mask[: words.size]
        sizes = np.bitwise_and(words, self._without_sign, out=scratch)
        self._elements += words.size
        self._sample(sizes)
        threshold = self._word(layout.bits_of(self._threshold))
        few = sizes[np.less(sizes, threshold, out=mask)]
        self._few.append(few)
        self._number_of_few += few.size
        if self._smallest >= threshold:  # else the smallest is among the few, of this chunk or of one before
            self._smallest = min(self._smallest, _smallest(few) if few.any() else _smallest(sizes))
        many, largest = sizes[:0], int(sizes.max())
        if largest >= self._overflow:
            many = sizes[sizes >= self._word(self._overflow)]
            largest = self._count_overflow(many, sizes)
        self._largest = max(self._largest, largest)
        if layout.surplus:
            self._inexact += self._with_surplus(sizes, out=self._spare[: words.size]) - self._with_surplus(many)
        if self._number_of_few >= _MANY:
            self._count_few()

    def census(self) -> Census:
        """Return what was counted."""
        self._count_few()
        self._count_aside()
        layout = self._layout
        largest, smallest = layout.numbers(np.array([self._largest, self._smallest], layout.word))
        return Census(
            floor=layout.floor,
            elements=self._elements,
            zeros=self._zeros,
            overflowing=self._overflowing,
            infinite=self._infinite,
            nan=self._nan,
            inexact=self._inexact,
            vanishing=self._vanishing,
            largest=float(largest),
            smallest=float(smallest) if self._smallest < layout.infinity else 0.0,
            exponents=tuple(self._exponents()),
            sampled_from=None if self._sampled.sum() == self._elements else self._counted_below,
        )

    def _sample(self, sizes: _Words) -> None:
        """Put some of the numbers aside, and where it is time for it, count those that were put aside."""
        if sizes.size > _BLOCK * _EVERY:
            sizes = sizes[: sizes.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK)[::_EVERY]
        self._aside.append(sizes.flatten())  # a copy
        self._number_aside += sizes.size
        again = self._elements >= self._look_again_at
        if again or self._number_aside >= _MANY:
            self._count_aside()
        if again:
            self._look_again_at = 2 * self._elements
            self._move_threshold()
        self._counted_below = min(self._counted_below, self._threshold)

    def _count_aside(self) -> None:
        layout = self._layout
        aside = np.concatenate([np.empty(0, layout.word), *self._aside])
        self._aside, self._number_aside = [], 0
        exponents = (aside >> self._word(layout.fraction_bits)).view(f"<i{layout.itemsize}")
        self._sampled += np.bincount(exponents, minlength=self._sampled.size)

    def _move_threshold(self) -> None:
        """Move the threshold to the highest power of two that few numbers of the sample are below, zeros aside."""
        bias = self._layout.bias
        below = np.cumsum(self._sampled[1 : _HIGHEST_THRESHOLD + bias])
        powers = int(np.searchsorted(below, _FEW * int(self._sampled.sum()), side="right"))
        self._threshold = max(self._layout.floor, powers + 1 - bias)

    def _count_overflow(self, many: _Words, sizes: _Words) -> int:
        """Count `many` of `sizes`, those that are no finite float16; return the bits of the largest finite number."""
        infinity = self._word(self._layout.infinity)
        finite = many[many < infinity]
        self._overflowing += finite.size
        self._infinite += int(np.count_nonzero(many == infinity))
        self._nan += int(np.count_nonzero(many > infinity))
        return int((finite if finite.size else sizes[sizes < infinity]).max(initial=0))

    def _with_surplus(self, sizes: _Words, out: _Words | None = None) -> int:
        return int(np.count_nonzero(np.bitwise_and(sizes, self._word(self._layout.surplus), out=out)))

    def _count_few(self) -> None:
        """Look at the numbers below the threshold one by one."""
        few = np.concatenate([np.empty(0, self._layout.word), *self._few])
        self._few, self._number_of_few = [], 0
        for first in range(0, few.size, _MANY):
            self._look_at(few[first : first + _MANY])

    def _look_at(self, few: _Words) -> None:
        layout = self._layout
        self._zeros += few.size - int(np.count_nonzero(few))
        few = few[few != 0]
        self._smallest = min(self._smallest, _smallest(few))
        numbers = layout.numbers(few)
        self._below += np.bincount(_exponents_of(numbers), minlength=self._below.size)
        numbers = numbers[numbers < 2.0**SMALLEST_NORMAL]
        steps = numbers * 2.0**-SMALLEST  # float16 has the whole ones; of two as near it takes the even one
        self._inexact += int(np.count_nonzero(steps != np.rint(steps)))
        self._vanishing += int(np.count_nonzero(numbers.astype(np.float32) <= 2.0 ** (SMALLEST - 1)))
        if layout.surplus:  # was counted for all, and counts from the smallest normal number on
            self._inexact -= self._with_surplus(few[few < self._word(layout.bits_of(SMALLEST_NORMAL))])

    def _exponents(self) -> Iterator[tuple[int, int]]:
        """Yield each power of two with its count: below every threshold as counted, else as sampled."""
        layout, lowest = self._layout, self._counted_below
        below = self._below[: lowest + _DEEPEST]
        yield from ((int(k) - _DEEPEST, int(below[k])) for k in np.flatnonzero(below))
        rest = self._elements - self._zeros - self._infinite - self._nan - int(below.sum())
        sampled = self._sampled[lowest + layout.bias : -1]
        if not rest:
            return
        if not sampled.any():  # the sample has missed them all, and the largest is among them
            sampled = np.bincount([(self._largest >> layout.fraction_bits) - layout.bias - lowest])
        # Shares of the rest in whole numbers that add up to it.
        upto = [rest * int(one) // int(sampled.sum()) for one in np.cumsum(sampled)]
        for k, (before, now) in enumerate(pairwise([0, *upto]), start=lowest):
            if now > before:
                yield k, now - before


def _exponents_of(numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return log2 of each number, rounded down, plus `_DEEPEST`; the subnormal ones of float64 count as its deepest."""
    return numbers.view(np.int64) >> 52


def _smallest(sizes: _Words) -> int:
    """Return the bits of the smallest number that is not zero; more than any number has if there is none."""
    # Zero, less one, wraps around to the largest integer.
    return int((sizes - sizes.dtype.type(1)).min(initial=~sizes.dtype.type(0))) + 1
