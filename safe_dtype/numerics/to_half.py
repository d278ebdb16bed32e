"""Weights times a power of two in float16: rounded once, in one pass, with a count of what was lost.

On a CPU, torch converts bfloat16 to float16 number by number, while its conversions to and from float32 are vectorized.
So numbers go through float32 in pieces that stay in the cache; there the product with a power of two is exact.

Counting by comparing all of it would take several times as long as the conversion. A sum of squares tells that nothing
of a piece overflowed; then the bits of the smallest number of each column tell where something may have vanished, or
lost digits among the subnormal numbers, and only that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .scratch import scratch

# Largest |exponent|: what times 2**100 is no number of float32, or subnormal there, is none of float16 either, and
# rounds to zero or infinity all the same, whether or not the processor flushes subnormal numbers of float32.
MOST = 100
# Numbers of a piece for each thread: with what is made of them 1.75 MB, in a second-level cache of 2 MB.
_PIECE = 2**17
_MOST_THREADS = 16  # that share a piece: room for more is not worth keeping
_PIECE_ELSEWHERE = 2**24  # on other devices, where a call costs more and nothing has to fit into a cache
_ROWS = 32  # numbers in a column
# Above this share of numbers that may have lost something, comparing pieces whole is faster than picking them out.
_MANY = 1 / 8
_PENDING = 32  # times that numbers are picked out before they are compared
# Of what adds up to less, no number is near 65520, from which on they round to infinity: half of its square.
_SQUARES = 2.0**31
_BEYOND = 1000  # an exponent that is too large for every dtype

_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_FRACTION = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}  # bits after the leading one


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a conversion lost. Those of several tensors add up with `+`.

    What vanished or overflowed is inexact, too. NaN and infinity stay what they are, and count as exact.
    """

    numel: int = 0
    inexact: int = 0  # numbers whose value changed
    vanished: int = 0  # those that became zero
    overflowed: int = 0  # finite ones that became infinite

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(
            self.numel + other.numel,
            self.inexact + other.inexact,
            self.vanished + other.vanished,
            self.overflowed + other.overflowed,
        )


def scaled_half(source: Tensor, exponent: int, *, out: Tensor | None = None) -> tuple[Tensor, Rounding]:
    """Return `source * 2**exponent` in float16, rounded once, to nearest and ties to even, and what was lost.

    Subnormal numbers of float16 are kept, too. The result has no history.

    Args:
        source: In bfloat16, float16 or float32; any shape and strides, on any device. One whose numbers do not lie side
            by side is copied first.
        exponent: From -100 to 100.
        out: Where to write the result: float16, of the same shape and device, any strides. It must not share memory
            with `source`. None makes a tensor with the strides that `source.half()` has.

    Raises:
        TypeError: If `source` is in another dtype, or `out` not in float16.
        ValueError: If `exponent` is out of range, `out` has another shape or device, or either tensor has no numbers,
            being on the meta device.
    """
    return _converted(source, exponent, out, _counted)


def to_scaled_half(source: Tensor, exponent: int, *, out: Tensor | None = None) -> Tensor:
    """Return what `scaled_half` returns, without counting what was lost: in a half to a third of the time."""
    return _converted(source, exponent, out, _uncounted)[0]


@torch.no_grad()
def _converted(
    source: Tensor, exponent: int, out: Tensor | None, convert: Callable[[Tensor, int, Tensor], Rounding]
) -> tuple[Tensor, Rounding]:
    """Check the arguments, and let `convert` fill a flat tensor of halves from a flat one of numbers."""
    _check(source, exponent, out)
    if out is None:
        out = torch.empty_like(source, dtype=torch.float16, requires_grad=False)
    # Largest strides first: then a transposed weight is read and written in the order of its memory.
    order = sorted(range(source.dim()), key=source.stride, reverse=True)
    numbers, target = source.detach().permute(order).reshape(-1), out.detach().permute(order)
    halves = target.view(-1) if target.is_contiguous() else torch.empty_like(numbers, dtype=torch.float16)
    lost = convert(numbers, exponent, halves)
    if not target.is_contiguous():
        target.copy_(halves.view(target.shape))
    return out, lost


def _check(source: Tensor, exponent: int, out: Tensor | None) -> None:
    if source.dtype not in _BITS:
        raise TypeError(f"source must be in bfloat16, float16 or float32, and is in {source.dtype}")
    if out is not None and out.dtype != torch.float16:
        raise TypeError(f"out must be in float16, and is in {out.dtype}")
    if not -MOST <= exponent <= MOST:
        raise ValueError(f"exponent must be from {-MOST} to {MOST}, and is {exponent}")
    if source.is_meta:
        raise ValueError("a tensor on the meta device has no numbers to convert: load it first")
    if out is not None and (out.shape != source.shape or out.device != source.device):
        raise ValueError(
            f"out must be like source, {tuple(source.shape)} on {source.device}, "
            f"and is {tuple(out.shape)} on {out.device}"
        )


def _pieces(numbers: Tensor, exponent: int, halves: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Convert piece by piece; yield each with its product in float32, good until the next, and in float16."""
    on_cpu = numbers.device.type == "cpu"
    size = _PIECE * min(torch.get_num_threads(), _MOST_THREADS) if on_cpu else _PIECE_ELSEWHERE
    room = torch.empty(min(size, numbers.numel()), dtype=torch.float32, device=numbers.device)
    for piece, half in zip(torch.split(numbers, size), torch.split(halves, size), strict=True):
        product = _product(piece, exponent, room[: piece.numel()])
        half.copy_(product)
        yield piece, product, half


def _uncounted(numbers: Tensor, exponent: int, halves: Tensor) -> Rounding:
    for _ in _pieces(numbers, exponent, halves):
        pass
    return Rounding()


def _counted(numbers: Tensor, exponent: int, halves: Tensor) -> Rounding:
    """Convert, and on a CPU compare only what may have lost something."""
    lost = Rounding(numbers.numel())
    if numbers.device.type != "cpu":
        for one in _pieces(numbers, exponent, halves):
            lost += _losses(*one)
        return lost
    suspicion = _Suspicion.of(numbers.dtype, exponent)
    turn = torch.tensor(suspicion.turn, dtype=_BITS[numbers.dtype])
    picked: list[Tensor] = []
    whole: bool | None = None
    for piece, product, half in _pieces(numbers, exponent, halves):
        if not float(torch.dot(product, product)) < _SQUARES:  # NaN is not, either
            lost += _losses(piece, product, half)
            continue
        turned = scratch(piece.shape, turn.dtype, turn.device)
        torch.add(turn, piece.view(turn.dtype), alpha=2, out=turned)
        if whole is None:  # one part of a weight is like another; if it is not, the count is right and takes longer
            found = sum(one.numel() for one in _pick(turned, suspicion.inexact))
            whole = found > max(_MANY * turned.numel(), _ROWS * 8)
        if whole:
            lost += Rounding(inexact=_unequal(product, scratch(half.shape, product.dtype, half.device).copy_(half)))
        picked += _pick(turned, suspicion.lost if whole else suspicion.inexact)
        if len(picked) >= _PENDING or (picked and picked[0].numel() > _PIECE // 4):
            lost += suspicion.losses(picked, compared=whole)
            picked = []
    return lost + suspicion.losses(picked, compared=bool(whole))


def _product(numbers: Tensor, exponent: int, room: Tensor) -> Tensor:
    """Return `numbers * 2**exponent` in float32, in `room` unless that is what they are: exact as far as MOST goes."""
    if numbers.dtype == torch.float32:
        return torch.mul(numbers, 2.0**exponent, out=room) if exponent else numbers
    room.copy_(numbers)
    return room.mul_(2.0**exponent) if exponent else room


def _unequal(product: Tensor, wide: Tensor) -> int:
    """Count what is not equal, and overwrite `wide`: torch compares in place eight times as fast as into booleans.

    What became zero in float32 already does not count.
    """
    return int(wide.ne_(product).sum())  # exact up to 2**24 numbers


def _losses(numbers: Tensor, product: Tensor, half: Tensor) -> Rounding:
    """Compare all of it; what is zero, finite or NaN is told by bits, whatever the processor does to subnormals."""
    bits = _BITS[numbers.dtype]
    magnitude = numbers.view(bits) & torch.iinfo(bits).max
    infinity = _bits_of_power(_BEYOND, numbers.dtype)
    half_magnitude = half.view(torch.int16) & torch.iinfo(torch.int16).max
    vanished = (half_magnitude == 0) & (magnitude != 0)
    overflowed = (half_magnitude == _bits_of_power(_BEYOND, torch.float16)) & (magnitude < infinity)
    inexact = ((half.float() != product) & (magnitude <= infinity)) | vanished | overflowed
    return Rounding(inexact=int(inexact.sum()), vanished=int(vanished.sum()), overflowed=int(overflowed.sum()))


@dataclass(frozen=True, slots=True)
class _Suspicion:
    """Which numbers may lose something though none overflow, by their bits.

    Twice the bits of a number, the sign dropping out, lie on a circle. Turned by `turn`, the smallest number above zero
    is the lowest there is, and zero the highest: what is worth a look is below a bound.
    """

    dtype: torch.dtype
    exponent: int
    turn: int
    lost: int  # bound of what may vanish
    inexact: int  # bound of what may change

    @classmethod
    def of(cls, dtype: torch.dtype, exponent: int) -> _Suspicion:
        limits = torch.iinfo(_BITS[dtype])
        fraction = _FRACTION[dtype]

        def bound(power: int) -> int:
            # No lower than the smallest normal number: subnormal ones of the source are few.
            small = max(_bits_of_power(power - exponent, dtype), 1 << fraction)
            return limits.min + 2 * small - 2

        return cls(
            dtype,
            exponent,
            turn=limits.max - 1,  # the lowest less two, around the circle
            lost=bound(-24),
            # Numbers of float16 are multiples of 2**-24, and have 11 significant bits.
            inexact=bound(fraction - 24) if fraction <= _FRACTION[torch.float16] else limits.max - 1,
        )

    def losses(self, picked: list[Tensor], *, compared: bool) -> Rounding:
        """Return what those lost: all of it, or where `_unequal` was asked before, the rest of it.

        Signs are gone, and do not matter to what is lost.
        """
        if not picked:
            return Rounding()
        turned = torch.cat(picked)
        turned = turned[turned < (self.lost if compared else self.inexact)]
        limits = torch.iinfo(turned.dtype)
        numbers = ((turned - self.turn) >> 1 & limits.max).view(self.dtype)
        product = _product(numbers, self.exponent, torch.empty_like(numbers, dtype=torch.float32))
        half = product.half()
        lost = _losses(numbers, product, half)
        return lost + Rounding(inexact=-_unequal(product, half.float())) if compared else lost


def _bits_of_power(exponent: int, dtype: torch.dtype) -> int:
    """Return the bits of `2**exponent`; of zero where that is subnormal in `dtype`, of infinity where it is too large."""
    bias = 15 if dtype == torch.float16 else 127
    return min(max(exponent + bias, 0), 2 * bias + 1) << _FRACTION[dtype]


def _pick(turned: Tensor, bound: int) -> Iterator[Tensor]:
    """Yield all numbers below the bound, and others near them.

    Seen as a table with as many columns as fill `_ROWS` rows, the numbers of a column are picked or not together with
    those of its neighbours that share 8 bytes: these are gathered as one, four times as fast.
    """
    together = 8 // turned.itemsize
    width = turned.numel() // (_ROWS * together) * together
    if width:
        table = turned[: width * _ROWS].view(_ROWS, width)
        # Compared in place, which is vectorized: what is true is 1 in an integer as wide as the numbers.
        below = table.amin(0).lt_(bound).view(torch.int64).nonzero().view(-1)
        yield table.view(torch.int64).index_select(1, below).view(-1).view(turned.dtype)
    if width * _ROWS < turned.numel():
        yield turned[width * _ROWS :].clone()
