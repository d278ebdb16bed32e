"""What float16 would make of many numbers, and how far they are from its limits. Imports no torch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields

from ...facts import FLOAT16

# Half a step above the largest: from here on rounding to nearest gives infinity, below it the largest.
OVERFLOWS_AT = FLOAT16.largest + 16.0
SMALLEST_NORMAL = -14  # as powers of two: from here on float16 has its full 11 significant bits
SMALLEST = -24  # ... and this is the smallest number that it has at all

_COUNTS = ("elements", "zeros", "overflowing", "infinite", "nan", "inexact", "vanishing")


@dataclass(frozen=True, slots=True)
class Census:
    """How many of some numbers float16 holds, changes and loses, and where they lie on the scale of powers of two.

    Censuses add up: the sum is the census of both. The counts of fates, `largest` and `smallest` are exact.
    """

    floor: int  # numbers of at least 2**floor keep every bit that float16 has room for: -17 for bfloat16, else -14
    elements: int = 0
    zeros: int = 0
    overflowing: int = 0  # finite, and infinite in float16
    infinite: int = 0  # already
    nan: int = 0  # already
    inexact: int = 0  # finite in float16, with another value than before; those that vanish are among them
    vanishing: int = 0  # not zero, and zero in float16
    largest: float = 0.0  # absolute value of a finite number; 0.0: there is none but zeros
    smallest: float = 0.0  # absolute value of a number that is finite and not zero; 0.0: there is none
    exponents: tuple[tuple[int, int], ...] = ()  # (k, n): n finite numbers in [2**k, 2**(k + 1)); k ascends
    sampled_from: int | None = None  # from this k on, n is the share of it in a sample; None: every n is counted

    def __add__(self, other: Census) -> Census:
        counts = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        sampled = [one for one in (self.sampled_from, other.sampled_from) if one is not None]
        return Census(
            # Of nothing, the floor says nothing. Of two kinds of numbers, the cautious one counts.
            floor=max((one.floor for one in (self, other) if one.elements), default=self.floor),
            largest=max(self.largest, other.largest),
            smallest=min((one for one in (self.smallest, other.smallest) if one), default=0.0),
            exponents=tuple(sorted((Counter(dict(self.exponents)) + Counter(dict(other.exponents))).items())),
            sampled_from=min(sampled, default=None),
            **counts,
        )

    @property
    def fits(self) -> bool:
        """Whether no finite number becomes infinite in float16."""
        return not self.overflowing

    @property
    def inexact_share(self) -> float:
        """The share of the elements that float16 changes."""
        return self.inexact / self.elements if self.elements else 0.0

    @property
    def bits_up(self) -> int | None:
        """The largest k for which nothing overflows after a multiplication by 2**k; None if all numbers are zero."""
        if not self.largest:
            return None
        mantissa, exponent = math.frexp(self.largest)  # largest = mantissa * 2**exponent, mantissa in [0.5, 1)
        return (16 if mantissa * 2.0**16 < OVERFLOWS_AT else 15) - exponent

    def bits_down(self, share: float) -> int | None:
        """Return the largest s for which 2**-s takes no more than `share` of the elements below 2**floor.

        Below it float16 may have to drop bits, so s is on the safe side: at most `share` lose any. Negative where it
        is too many as they are. None if s has no limit, as where all numbers are zero.
        """
        allowed, below = share * self.elements, 0
        for exponent, count in self.exponents:
            below += count
            if below > allowed:
                return exponent - self.floor
        return None

    def quantile(self, share: float) -> float | None:
        """Return log2 of the absolute value that `share` of the numbers stay under, zeros aside; None if all are zero.

        Between powers of two it is interpolated.
        """
        wanted, below = share * sum(count for _, count in self.exponents), 0
        for exponent, count in self.exponents:
            if below + count >= wanted:
                power = exponent + max(0.0, wanted - below) / count
                return min(max(power, math.log2(self.smallest)), math.log2(self.largest))
            below += count
        return None

    def to_dict(self) -> dict[str, object]:
        """Return the counts, the range and the histogram as plain values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return values | {"exponents": {str(exponent): count for exponent, count in self.exponents}}
