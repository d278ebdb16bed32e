"""Exact rescalings of a network by powers of two. Nouns only: nothing here finds or applies them.

A gauge is a set of moves that together leave what a network computes as it is: activations inside become smaller, and
something after them, which forgets their size or is multiplied by the inverse, makes up for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any

# The most bits that activations are moved by: float16 holds 40 binary places in all, and a stream of activations needs
# 20 of them (measured on real models). Beyond, small numbers are lost.
MOST_BITS = 14
# ... for the sake of room: with more, small weights and activations get lost below float16's range. The error grows from
# 12 bits on (measured), so that only what does not fit otherwise is moved further.
MOST_BITS_FOR_ROOM = 10
# What has to be free above the largest activation seen: others may reach further.
LEAST_SPARE_BITS = 2


class Part(str, Enum):
    """What a move multiplies."""

    WEIGHT = "weight"  # a parameter
    NUMBER = "number"  # a number that a module keeps: an eps, the scaling of attention scores, that of an embedding
    INPUT = "input"  # the first tensor that a module is given
    OUTPUT = "output"  # the tensor that a module returns

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of a parameter: `weight.narrow`-like along `dim`, in steps; fractions of its size, so that sizes may vary."""

    dim: int  # negative, counted from the end
    start: float  # 0.0 is the first row, 1.0 is behind the last one
    stop: float
    offset: int = 0  # of every `step` rows between start and stop, only this one
    step: int = 1

    def __str__(self) -> str:
        every = f", no. {self.offset} of every {self.step}" if self.step > 1 else ""
        return f"rows {self.start:.0%} to {self.stop:.0%}{every}"

    def of(self, size: int) -> slice:
        """Return the slice along `dim` of a tensor that has `size` rows there.

        Raises:
            ValueError: If the fractions do not fall between rows.
        """
        start, stop = self.start * size, self.stop * size
        if abs(start - round(start)) > 1e-6 or abs(stop - round(stop)) > 1e-6:
            raise ValueError(f"{self.start:.4g} to {self.stop:.4g} of {size} rows are no whole rows")
        return slice(round(start) + self.offset, round(stop), self.step)


@dataclass(frozen=True, slots=True)
class Move:
    """One factor of a gauge: what it names is multiplied by 2 ** (power * bits)."""

    part: Part
    target: str  # dotted, from the model: of a parameter, of an attribute, of a module
    power: int
    rows: Rows | None = None  # None: all of it


@dataclass(frozen=True, slots=True)
class Gauge:
    """Moves that cancel each other. `name` tells what becomes smaller: "residual", "mlp", "scores", ..."""

    name: str
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Rescale:
    """Gauges with the number of bits that each is moved by: what becomes smaller does so by 2 ** bits."""

    shifts: tuple[tuple[Gauge, int], ...]
    unproven: tuple[str, ...] = ()  # modules for other inputs than text: what they hand on was not part of any proof

    def bits(self, name: str) -> int:
        """Return by how many bits the gauge `name` is moved; 0 where there is none of that name."""
        return sum(bits for gauge, bits in self.shifts if gauge.name == name)

    def exponents(self) -> dict[tuple[Part, str, Rows | None], int]:
        """Return the exponent of 2 for everything that is multiplied; what cancels out is left out."""
        exponents: dict[tuple[Part, str, Rows | None], int] = {}
        for gauge, bits in self.shifts:
            for move in gauge.moves:
                key = (move.part, move.target, move.rows)
                exponents[key] = exponents.get(key, 0) + move.power * bits
        return {key: exponent for key, exponent in exponents.items() if exponent}

    def with_bits(self, bits: Mapping[str, int]) -> Rescale:
        """Return the same gauges moved by other numbers of bits; those that `bits` does not name stay."""
        return replace(self, shifts=tuple((gauge, bits.get(gauge.name, now)) for gauge, now in self.shifts))

    def renamed(self, new_name: Callable[[str], str]) -> Rescale:
        """Return the same rescale with every target under the name that `new_name` gives it."""
        shifts = tuple(
            (Gauge(gauge.name, tuple(replace(move, target=new_name(move.target)) for move in gauge.moves)), bits)
            for gauge, bits in self.shifts
        )
        return Rescale(shifts, tuple(map(new_name, self.unproven)))

    def __str__(self) -> str:
        return ", ".join(f"{gauge.name} {factor_of(bits)}" for gauge, bits in self.shifts if bits) or "nothing"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every move written out."""
        return {
            "shifts": [
                {"gauge": gauge.name, "bits": bits, "moves": [_plain(move) for move in gauge.moves]}
                for gauge, bits in self.shifts
            ],
            "unproven": list(self.unproven),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Rescale:
        """Return what `to_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: If it wrote something else.
        """
        shifts = tuple((gauge_from_dict(one), int(one["bits"])) for one in values["shifts"])
        return cls(shifts, tuple(map(str, values["unproven"])))


def gauge_from_dict(values: Mapping[str, Any]) -> Gauge:
    """Return a gauge from its plain values.

    Raises:
        KeyError, TypeError, ValueError: If they are not a gauge's.
    """
    moves = tuple(
        Move(
            Part(move["part"]), move["target"], int(move["power"]), Rows(**move["rows"]) if move.get("rows") else None
        )
        for move in values["moves"]
    )
    return Gauge(values.get("gauge") or values["name"], moves)


def gauge_to_dict(gauge: Gauge) -> dict[str, Any]:
    """Return the plain values of a gauge."""
    return {"name": gauge.name, "moves": [_plain(move) for move in gauge.moves]}


def factor_of(bits: int) -> str:
    """Return what makes numbers smaller by `bits` bits, as a power: "2^-8"; a negative number of bits makes them larger."""
    return f"2^{-bits}"


def plain_factor_of(bits: int) -> str:
    """Return the same without a power: "1/256", or "8" for -3 bits."""
    return f"1/{2**bits:,}" if bits >= 0 else f"{2**-bits:,}"


def summary(gauge: Gauge, bits: int) -> tuple[str, ...]:
    """Return what a gauge multiplies, and by what: one line for all that differ in nothing but numbers in their names."""
    counts: dict[str, int] = {}
    for move in gauge.moves:
        where = re.sub(r"\b\d+\b", "*", move.target)
        part = "" if move.part in (Part.WEIGHT, Part.NUMBER) else f"{move.part} of "
        rows = "" if move.rows is None else f" ({move.rows})"
        line = f"{part}{where}{rows} 2^{move.power * bits:+d}"
        counts[line] = counts.get(line, 0) + 1
    return tuple(f"{line} ({count})" if count > 1 else line for line, count in counts.items())


def _plain(move: Move) -> dict[str, Any]:
    values: dict[str, Any] = {"part": str(move.part), "target": move.target, "power": move.power}
    if move.rows is not None:
        values["rows"] = asdict(move.rows)
    return values
