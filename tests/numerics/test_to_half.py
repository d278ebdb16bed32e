"""bfloat16 in float16, the quick way: bit for bit what torch makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from safe_dtype.numerics.to_half import PIECE, as_half


def weights(*shape: int) -> Tensor:
    """Return numbers as trained weights are spread."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)


def every_number() -> Tensor:
    """Return each of the 65536 numbers of bfloat16."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def check(source: Tensor) -> None:
    """Compare bits, signs of zeros too; of NaN only that it stays one."""
    halves, expected = as_half(source), source.half()
    assert (halves.dtype, halves.stride()) == (torch.float16, expected.stride())
    assert torch.equal(halves.isnan(), source.isnan())
    known = ~source.isnan()
    assert torch.equal(halves[known].view(torch.int16), expected[known].view(torch.int16))


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Give torch this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_number() -> None:
    """Each number is rounded once, subnormal ones of float16 too; what is too large becomes infinite."""
    check(every_number())


def test_longer_than_a_piece(threads: int) -> None:
    """The border of a piece is crossed, with numbers of each kind on both sides and at the end."""
    border = PIECE * threads
    source = weights(border + 12_345)
    rare = torch.tensor([torch.inf, -torch.nan, 0.0, -0.0, 3e-5, 1e-7, -3e-8, 1e-38, 6e4, -65520.0, 1e38]).bfloat16()
    for start in (0, border - len(rare) // 2, len(source) - len(rare)):
        source[start : start + len(rare)] = rare
    check(source)


@pytest.mark.parametrize("length", [0, 1, 127])
def test_short(length: int) -> None:
    """What is shorter than a piece is converted, too."""
    check(weights(length))


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda whole: whole.t(), id="transposed"),
        pytest.param(lambda whole: whole[:, 1::3], id="strided"),
        pytest.param(lambda whole: whole[1:, 1:], id="odd-offset"),
        pytest.param(lambda whole: whole[5].expand(7, -1), id="expanded"),
        pytest.param(lambda whole: whole.view(20, 15, 301).permute(1, 2, 0), id="permuted"),
        pytest.param(lambda whole: whole[3, 4], id="one-number"),
    ],
)
def test_any_strides(view: Callable[[Tensor], Tensor]) -> None:
    """A view is converted as a tensor of its own would be, into the strides that torch gives its half."""
    check(view(weights(300, 301)))


def test_subnormal_numbers_flushed_by_the_processor() -> None:
    """Nothing changes where float32's own subnormal numbers count as zero."""
    source = torch.cat([every_number(), weights(200_000)])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        flushed = as_half(source)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(flushed.view(torch.int16), as_half(source).view(torch.int16))


def test_a_parameter() -> None:
    """The half of a parameter has no history and wants no gradient."""
    halves = as_half(torch.nn.Parameter(weights(30, 40)))
    assert type(halves) is Tensor
    assert not halves.requires_grad


def test_inference_tensors() -> None:
    """What was made in inference mode is converted there and outside."""
    with torch.inference_mode():
        source = weights(300, 500)
        inside = as_half(source)
    assert torch.equal(as_half(source), inside)
