"""A linear weight as codes of 8 and of 4 bits."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from kernels.codes import coded, few_rows_by, weight_of
from torch import Tensor

from safe_dtype.facts import CODES, INT4, INT8, Dtype, coding_for, plainly
from safe_dtype.kernels.weights.coded_weight import CodedWeight, can_be_coded, rounded

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [FP32, BF16, FP16]

both = pytest.mark.parametrize("codes", CODES, ids=str)


@pytest.mark.parametrize("dtype", DTYPES)
def test_within_half_a_scale(dtype: torch.dtype) -> None:
    """Codes of 8 bits reach the largest number of each row, and every number is held to half a scale, rounded as that is."""
    weight = weight_of((37, 500), dtype) * torch.logspace(-2, 2, 37)[:, None].to(dtype)
    codes = coded(weight, INT8)
    assert (codes.tensor.dtype, codes.scales.dtype) == (torch.int8, dtype)
    assert (codes.tensor.abs().amax(1) >= 126).all()
    off = (codes.weight() - weight.float()).abs()
    assert (off <= codes.scales.float()[:, None] * 0.51 + weight.float().abs() * torch.finfo(dtype).eps / 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_err_less_than_by_their_largest(dtype: torch.dtype) -> None:
    """Of 4 bits each group of 32 errs at most as much as by the scale that its largest number alone would give it."""
    weight = weight_of((48, 640), dtype) * torch.logspace(-2, 2, 48)[:, None].to(dtype)
    codes = coded(weight, INT4)
    groups = weight.float().view(48, 20, 32)
    scales = (groups.gather(-1, groups.abs().argmax(-1, keepdim=True)) / -8).to(dtype).float()
    plain = (groups / scales).round().clamp(-8, 7) * scales
    mine, theirs = ((one.view_as(groups) - groups).square().sum(-1) for one in (codes.weight(), plain))
    assert (mine <= theirs * 1.0001).all()
    assert mine.sum() < 0.97 * theirs.sum()


def test_codes_that_are_exact() -> None:
    """A weight that is made of codes and scales comes out as it was, bit for bit."""
    torch.manual_seed(0)
    tensor = torch.randint(-127, 128, (64, 300))
    tensor[:, 0] = 127
    weight = tensor * 2.0 ** torch.randint(-10, 0, (64, 1))
    assert torch.equal(coded(weight.bfloat16(), INT8).weight(), weight)


@pytest.mark.parametrize("end", [-8, 8])
def test_groups_that_are_exact(end: int) -> None:
    """So does one that is made of codes of 4 bits, the largest number of a group of either sign."""
    torch.manual_seed(0)
    tensor = torch.randint(-7, 8, (64, 10, 32))
    tensor[..., 5] = end
    tensor = tensor.clamp(min=-7) if end > 0 else tensor.clamp(max=7)
    weight = (tensor * 2.0 ** torch.randint(-10, 0, (64, 10, 1))).view(64, 320)
    assert torch.equal(coded(weight.bfloat16(), INT4).weight(), weight)


def test_both_layouts_hold_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of 4 bits that lie as torch takes them stand for the numbers of those in rows, bit for bit."""
    pytest.importorskip("llvmlite", reason="codes lie in rows where products are compiled")
    weight = weight_of((144, 320))
    in_rows = coded(weight, INT4)
    few_rows_by("torch", monkeypatch)
    by_torch = coded(weight, INT4)
    assert (in_rows.by_torch, by_torch.by_torch) == (False, True)
    assert torch.equal(by_torch.weight(), in_rows.weight())
    assert torch.equal(in_rows.weight(), rounded(weight, plainly(INT4)))
    assert by_torch.nbytes == in_rows.nbytes


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_rows(dtype: torch.dtype, codes: Dtype) -> None:
    """Rows of zeros stay so; those near the end of the dtype keep numbers, and no scale is zero."""
    weight = torch.zeros(16, 6016, dtype=dtype)
    weight[1] = torch.finfo(dtype).smallest_normal
    made = coded(weight, codes)
    assert (made.scales != 0).all()
    assert not made.weight()[[0, 2]].any()
    assert torch.allclose(made.weight()[1], weight[1].float(), rtol=0.02, atol=0)


@both
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(number: float, codes: Dtype) -> None:
    """A weight that holds what no code stands for has none."""
    weight = weight_of((208, 96))
    weight[150, 7] = number
    assert CodedWeight.of(weight, plainly(codes)) is None


@both
@pytest.mark.parametrize("who", ["compiled", "torch"])
def test_in_pieces(codes: Dtype, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes do not depend on how many rows are rounded at a time."""
    few_rows_by(who, monkeypatch)
    weight = weight_of((304, 96))
    whole = coded(weight, codes)
    for name in ("_CODED_AT_ONCE", "_TRIED_AT_ONCE"):
        monkeypatch.setattr(import_module("safe_dtype.kernels.weights.coded_weight"), name, 700)
    pieces = coded(weight, codes)
    assert torch.equal(whole.tensor, pieces.tensor)
    assert torch.equal(whole.scales, pieces.scales)


def test_bytes() -> None:
    """A byte for each number, and a scale for each output; or half a byte, and a scale for each group."""
    weight = weight_of((304, 96), BF16)
    assert coded(weight, INT8).nbytes == 304 * 96 + 304 * 2
    assert coded(weight, INT4).nbytes == 304 * 96 // 2 + 304 * 3 * 2


@pytest.mark.parametrize(
    ("shape", "codes"),
    [((1024, 1024), INT4), ((1000, 1024), INT8), ((1024, 1000), INT8), ((16, 1000), None)],
    ids=str,
)
def test_what_4_bits_leave(shape: tuple[int, int], codes: Dtype | None) -> None:
    """Weights that are no whole groups, or no sixteens of outputs, are held in 8 bits, and small ones as they are."""
    coding = coding_for(INT4, *shape)
    assert (coding.codes if coding else None) == codes


@both
@pytest.mark.parametrize(
    ("weight", "can_be"),
    [
        (torch.ones(128, 128), True),
        (torch.ones(128, 128, dtype=FP16), True),
        (torch.ones(127, 128), False),
        (torch.ones(4, 128, 128), False),
        (torch.ones(128, 256)[:, ::2], False),
        (torch.ones(128, 128, dtype=torch.float64), False),
        (torch.ones(128, 128, device="meta"), False),
    ],
    ids=["float32", "float16", "small", "experts", "strided", "float64", "meta"],
)
def test_can_be_coded(weight: Tensor, codes: Dtype, *, can_be: bool) -> None:
    """Matrices in one of the dtypes of models, in main memory, of a size that is worth it."""
    assert can_be_coded(weight, codes) is can_be
