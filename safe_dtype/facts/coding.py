"""How linear weights are held as codes: in how many bits, and how many of them share a scale. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from .dtypes import INT4, INT8, Dtype

# Numbers of a weight below which it is not rounded to codes: the calls around its products are worth more than the bytes.
LEAST_CODED = 2**14


@dataclass(frozen=True, slots=True)
class Coding:
    """One way to hold a linear weight as codes, with scales in the dtype of what is multiplied."""

    codes: Dtype
    bits: int  # of a code
    group: int | None  # inputs of an output that share a scale; None: all of them
    outputs: int = 1  # what the number of outputs is a multiple of

    def holds(self, outputs: int, inputs: int) -> bool:
        """Whether a weight of this shape can be held so."""
        return inputs % (self.group or 1) == 0 and outputs % self.outputs == 0

    def nbytes(self, outputs: int, inputs: int, itemsize: int) -> int:
        """Return the bytes of the codes of such a weight, and of its scales of `itemsize` bytes."""
        groups = inputs // self.group if self.group else 1
        return outputs * inputs * self.bits // 8 + outputs * groups * itemsize

    def __str__(self) -> str:
        shared = f"every {self.group} inputs of an output" if self.group else "each output"
        return f"{self.bits} bits, with a scale for {shared}"


_8_BITS = Coding(INT8, 8, None)
# The smallest group that torch multiplies by (`aten._weight_int4pack_mm_for_cpu`), and the one that drifts least; it takes
# outputs in sixteens.
_4_BITS = Coding(INT4, 4, 32, outputs=16)
_WAYS = {INT8: (_8_BITS,), INT4: (_4_BITS, _8_BITS)}  # the first that holds a weight
CODES = tuple(_WAYS)  # the nearest to the weights first


def coding_for(codes: Dtype, outputs: int, inputs: int) -> Coding | None:
    """Return how a weight of this shape is held where linear weights are rounded to `codes`; None: it stays as it is."""
    if outputs * inputs < LEAST_CODED:
        return None
    return next((one for one in _WAYS[codes] if one.holds(outputs, inputs)), None)


def codes_of_head(codes: Dtype) -> Dtype:
    """Return what the output head is rounded to where other linear weights are rounded to `codes`.

    Its errors are the results' own: of tiny-qwen3 in 4 bits they would be half of all the drift.
    """
    return INT8 if codes == INT4 else codes


def plainly(codes: Dtype) -> Coding:
    """Return how most weights are held where they are rounded to `codes`."""
    return _WAYS[codes][0]
