"""Weights times a power of two in float16: the exact product rounded once, and what that lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from safe_dtype.numerics import to_half as halving
from safe_dtype.numerics.to_half import MOST, Rounding, scaled_half, to_scaled_half

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=["bf16", "f16", "f32"])
EXPONENTS = pytest.mark.parametrize("exponent", [*range(-24, 25), -MOST, MOST])


def weights(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> Tensor:
    """Return numbers as trained weights are spread."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul_(0.02).to(dtype)


def every_pattern(dtype: torch.dtype) -> Tensor:
    """Return each of the 65536 numbers of a dtype of 16 bits."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def random_patterns(count: int) -> Tensor:
    """Return numbers of float32 with random bits, and those of every bfloat16 with a little added."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(0))
    return torch.cat(
        [bits.to(torch.int32), *(every_pattern(BF16).float().view(torch.int32) + n for n in (-1, 0, 1))]
    ).view(F32)


def exactly(source: Tensor, exponent: int) -> tuple[Tensor, Rounding]:
    """Return the product rounded by integer steps of the float16 that it lies in, in float64, and what that lost."""
    product = source.double() * 2.0**exponent
    _, power = torch.frexp(product.abs())
    step = torch.ldexp(torch.ones_like(product), (power - 11).clamp(min=-24))
    rounded = torch.where(product.isfinite(), torch.round(product / step) * step, product)
    rounded[(rounded.abs() > 65504) & rounded.isfinite()] *= torch.inf
    lost = Rounding(
        source.numel(),
        inexact=int(((rounded != product) & ~product.isnan()).sum()),
        vanished=int(((rounded == 0) & (product != 0)).sum()),
        overflowed=int((rounded.isinf() & product.isfinite()).sum()),
    )
    return rounded, lost


def check(source: Tensor, exponent: int) -> None:
    """Compare the numbers, signs of zeros too, and the counts."""
    found, lost = scaled_half(source, exponent)
    rounded, exact = exactly(source, exponent)
    assert found.dtype == F16
    assert found.shape == source.shape
    assert torch.equal(found.isnan(), source.isnan())
    known = ~source.isnan()
    assert torch.equal(found[known].view(torch.int16), rounded[known].half().view(torch.int16))
    assert lost == exact


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Give torch this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@EXPONENTS
@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
def test_every_number_of_16_bits(dtype: torch.dtype, exponent: int) -> None:
    """Each number comes out as the exact product rounded once, and is counted right."""
    check(every_pattern(dtype), exponent)


@EXPONENTS
def test_numbers_of_float32(exponent: int) -> None:
    """Random bits, and those beside a bfloat16, which are ties and their neighbours, are rounded once."""
    check(random_patterns(20_000), exponent)


@pytest.mark.parametrize("exponent", [-24, -6, 0, 6, 24])
def test_as_torch_does_it_in_float64(exponent: int) -> None:
    """The float64 of torch, which rounds to float32 first, agrees: the product has no more digits than float32."""
    source = every_pattern(BF16)
    known = ~source.isnan()
    theirs = (source.double() * 2.0**exponent).half()[known]
    assert torch.equal(scaled_half(source, exponent)[0][known].view(torch.int16), theirs.view(torch.int16))


@DTYPES
@pytest.mark.parametrize("exponent", [-MOST, -12, -6, 0, 6, 20, MOST])
def test_weights_longer_than_a_piece(dtype: torch.dtype, exponent: int, threads: int) -> None:
    """The border of a piece is crossed, with numbers of each kind on both sides and at the end."""
    border = halving._PIECE * threads
    source = weights(border + 12_345, dtype=dtype)
    rare = torch.tensor([torch.inf, -torch.nan, 0.0, -0.0, 3e-5, 1e-7, -3e-8, 1e-38, 6e4, -65520.0, 1e38]).to(dtype)
    for start in (0, border - len(rare) // 2, len(source) - len(rare)):
        source[start : start + len(rare)] = rare
    check(source, exponent)


@DTYPES
@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 256, 10_000])
def test_short_ones(dtype: torch.dtype, length: int) -> None:
    """What does not fill a table is compared, too."""
    check(weights(length, dtype=dtype), -8)


@DTYPES
@pytest.mark.parametrize("first", ["large", "small"])
def test_a_tensor_whose_parts_differ(dtype: torch.dtype, first: str) -> None:
    """Counts are right when the first piece promises little loss and the others have much, and the reverse."""
    large = torch.ones(halving._PIECE * torch.get_num_threads()).to(dtype)
    small = weights(*large.shape, dtype=dtype).mul_(2.0**-10)
    check(torch.cat([large, small, small] if first == "large" else [small, large, small]), -3)


@pytest.mark.parametrize("dtype", [BF16, F32], ids=["bf16", "f32"])
@pytest.mark.parametrize("large", [65504.0, 65519.0, -65520.0, 65536.0, -3e38])
def test_one_number_near_the_largest(large: float, dtype: torch.dtype) -> None:
    """A single finite number that overflows is found among many small ones, and one that just fits is not counted."""
    source = weights(50_000, dtype=dtype)
    source[4321] = large
    check(source, 0)


def test_mostly_zeros() -> None:
    """A pruned weight lost nothing where it was zero before."""
    source = weights(2 * halving._PIECE) * (torch.arange(2 * halving._PIECE) % 3 == 0)
    check(source, -6)


@DTYPES
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda whole: whole.t(), id="transposed"),
        pytest.param(lambda whole: whole[:, 1::3], id="strided"),
        pytest.param(lambda whole: whole[1:, 1:], id="odd-offset"),
        pytest.param(lambda whole: whole[5].expand(7, -1), id="expanded"),
        pytest.param(lambda whole: whole.view(20, 15, 301).permute(1, 2, 0), id="permuted"),
        pytest.param(lambda whole: whole.flatten()[1:], id="from-the-second"),
        pytest.param(lambda whole: whole[3, 4], id="one-number"),
    ],
)
def test_any_strides(view: object, dtype: torch.dtype) -> None:
    """A view is converted as a tensor of its own would be, into the strides that torch gives its half."""
    assert callable(view)
    source = view(weights(300, 301, dtype=dtype))
    check(source, -6)
    assert scaled_half(source, -6)[0].stride() == source.float().half().stride()


@pytest.mark.parametrize(
    "out",
    [
        pytest.param(torch.empty(300, 200, dtype=F16), id="contiguous"),
        pytest.param(torch.empty(200, 300, dtype=F16).t(), id="transposed"),
        pytest.param(torch.empty(300, 400, dtype=F16)[:, ::2], id="strided"),
    ],
)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed-source"])
def test_out_is_filled(out: Tensor, transposed: bool) -> None:
    """The result is written where it is asked for, and returned, whatever the strides of either."""
    source = weights(200, 300).t() if transposed else weights(300, 200)
    found, lost = scaled_half(source, -6, out=out.fill_(torch.nan))
    assert found is out
    assert torch.equal(out, exactly(source, -6)[0].half())
    assert lost == exactly(source, -6)[1]


@DTYPES
@pytest.mark.parametrize("exponent", [-6, 0, 6])
def test_without_counting(dtype: torch.dtype, exponent: int) -> None:
    """The numbers are the same when nothing is counted."""
    source = weights(400, 500, dtype=dtype)
    assert torch.equal(to_scaled_half(source, exponent), scaled_half(source, exponent)[0])


@DTYPES
@pytest.mark.parametrize("exponent", [-10, 0, 10])
def test_other_devices_find_the_same(dtype: torch.dtype, exponent: int) -> None:
    """The plain operations for other devices, here on the CPU, agree with the quick route."""
    source = weights(300_000, dtype=dtype)
    source[::1000] = torch.inf
    halves = torch.empty_like(source, dtype=F16)
    lost = Rounding(source.numel(), 0, 0, 0)
    for one in halving._pieces(source, exponent, halves):
        lost += halving._losses(*one)
    assert (lost, halves.tolist()) == (scaled_half(source, exponent)[1], scaled_half(source, exponent)[0].tolist())


@pytest.mark.needs("cuda")
@DTYPES
def test_on_cuda(dtype: torch.dtype) -> None:
    """A GPU rounds and counts as the CPU does."""
    source = weights(1000, 1001, dtype=dtype)
    found, lost = scaled_half(source.cuda(), -6)
    assert torch.equal(found.cpu(), scaled_half(source, -6)[0])
    assert lost == exactly(source, -6)[1]


def test_subnormal_numbers_flushed_by_the_processor() -> None:
    """Nothing changes where float32's own subnormal numbers count as zero."""
    source = torch.cat([every_pattern(BF16), weights(200_000)])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        found = [scaled_half(source, exponent) for exponent in (-MOST, -6, 24, MOST)]
    finally:
        torch.set_flush_denormal(False)
    for exponent, (halves, lost) in zip((-MOST, -6, 24, MOST), found, strict=True):
        plain, exact = scaled_half(source, exponent)
        assert torch.equal(halves.view(torch.int16), plain.view(torch.int16))
        assert lost == exact


def test_a_parameter() -> None:
    """The half of a parameter has no history and wants no gradient."""
    found, _ = scaled_half(torch.nn.Parameter(weights(30, 40)), 3)
    assert type(found) is Tensor
    assert not found.requires_grad


def test_inference_tensors() -> None:
    """What was made in inference mode is converted there and outside."""
    with torch.inference_mode():
        source = weights(300, 500)
        inside = scaled_half(source, -6)[0]
    assert torch.equal(scaled_half(source, -6)[0], inside)


def test_losses_add_up() -> None:
    """What several tensors lost is the sum."""
    assert Rounding(10, 4, 3, 1) + Rounding(5, 2, 1, 0) == Rounding(15, 6, 4, 1)


@pytest.mark.parametrize(
    ("source", "exponent", "out", "error", "words"),
    [
        pytest.param(torch.ones(3, dtype=torch.float64), 0, None, TypeError, "float64", id="float64"),
        pytest.param(torch.ones(3, dtype=torch.int32), 0, None, TypeError, "int32", id="integers"),
        pytest.param(torch.ones(3), MOST + 1, None, ValueError, "from -100 to 100", id="exponent"),
        pytest.param(torch.ones(3), 0, torch.ones(3), TypeError, "out must be in float16", id="out-dtype"),
        pytest.param(torch.ones(3), 0, torch.ones(4).half(), ValueError, r"\(3,\) .* \(4,\)", id="out-shape"),
        pytest.param(torch.ones(3), 0, torch.ones(3, device="meta").half(), ValueError, "on meta", id="out-on-meta"),
        pytest.param(torch.ones(3, device="meta"), 0, None, ValueError, "no numbers", id="meta"),
    ],
)
def test_refused(source: Tensor, exponent: int, out: Tensor | None, error: type[Exception], words: str) -> None:
    """What cannot be converted is refused, with the fact."""
    with pytest.raises(error, match=words):
        scaled_half(source, exponent, out=out)
