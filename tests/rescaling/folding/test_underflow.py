"""What float16 loses of a weight that is multiplied by a power of two is kept, and comes back bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from engineered import engineered
from rescaling.gauges_by_hand import residual
from torch import Tensor

from safe_dtype.facts import Rescale, Rows
from safe_dtype.rescaling import Fold
from safe_dtype.rescaling.folding.underflow import moved, moved_from, unmoved

HALF = Rows(0, 0.5, 1.0)


def small(*shape: int, scale: float = 2.0**-10, seed: int = 0) -> Tensor:
    """Return weights in float16 that 8 bits down lose most of their own."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).half()


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([{None: -8}], id="once"),
        pytest.param([{None: -4}, {None: -9}, {None: -2}], id="up-and-down"),
        pytest.param([{None: -6, HALF: -4}, {HALF: -10}, {None: 3}], id="rows"),
        pytest.param([{None: -24}], id="to-zero"),
    ],
)
@pytest.mark.parametrize("scale", [2.0**-4, 2.0**-10, 2.0**-16], ids=str)
def test_moved_and_back(steps: list[dict[Any, int]], scale: float) -> None:
    """However it was moved in between, it is what it was once it is not moved, and rounded once where it is."""
    weight = small(16, 24, scale=scale)
    now, before, lost = weight, {}, None
    for after in steps:
        now, lost = moved(now, before, after, lost)
        direct, _ = moved(weight, {}, after, None)
        assert torch.equal(now, direct)
        assert torch.equal(unmoved(now, after, lost), weight.float())
        before = after
    back, lost = moved(now, before, {}, lost)
    assert torch.equal(back, weight)
    assert lost is None


@pytest.mark.parametrize("seed", range(12))
def test_any_way_there_and_back(seed: int) -> None:
    """Weights of all sizes, subnormal ones and signed zeros too, moved at random: never rounded twice, and bit for bit back."""
    random = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(2**15), 2**15, (24, 16), generator=random).short()
    weight = torch.where(bits.view(torch.float16).abs() < 2**9, bits.view(torch.float16), torch.zeros(()).half())
    weight[0, :4] = torch.tensor([2.0**-24, -(2.0**-24), 2.0**-14 - 2.0**-24, -0.0]).half()
    now, before, lost = weight, {}, None
    for exponent in torch.randint(-14, 7, (8,), generator=random).tolist():
        for after in ({None: exponent}, {None: exponent - 2, HALF: -3}, {}):
            now, lost = moved(now, before, after, lost)
            direct, _ = moved(weight, {}, after, None)
            assert torch.equal(now.view(torch.int16), direct.view(torch.int16))
            assert torch.equal(unmoved(now, after, lost), weight.float())
            before = after
        assert torch.equal(now.view(torch.int16), weight.view(torch.int16))
        assert lost is None


def test_a_weight_that_is_one_number() -> None:
    """A scale of a whole layer, a parameter without dimensions, is moved as any other."""
    weight = torch.tensor(0.7771).half()
    now, lost = moved(weight, {}, {None: -18}, None)
    assert lost is not None
    assert torch.equal(unmoved(now, {None: -18}, lost), weight.float())
    assert torch.equal(moved(now, {None: -18}, {}, lost)[0], weight)
    assert torch.equal(moved_from(weight.float(), {None: -18}, weight)[0], now)


def test_nothing_is_kept_where_nothing_is_lost() -> None:
    """Weights that have the room lose nothing; a few that lose something take a few bytes."""
    assert moved(small(64, 64, scale=1.0).clamp(min=2.0**-6), {}, {None: -3}, None)[1] is None
    _, lost = moved(small(64, 64, scale=1.0), {}, {None: -6}, None)
    assert lost is not None
    assert lost.index is not None
    assert lost.values.numel() < 64 * 64 / 10
    assert lost.error < 1e-4


def test_never_more_than_the_weight_itself() -> None:
    """Where most elements lose bits the weight is kept as it was."""
    weight = small(64, 64)
    _, lost = moved(weight, {}, {None: -10}, None)
    assert lost is not None
    assert (lost.index, lost.values.dtype) == (None, torch.float16)
    assert lost.error > 0.01


def test_elements_written_over_since() -> None:
    """What somebody has written is multiplied back as it is; the rest comes back bit for bit."""
    for bits in (-8, -14):
        weight = small(32, 32, scale=2.0**-9)
        now, lost = moved(weight, {}, {None: bits}, None)
        now[3] = 2.0**-7
        back, _ = moved(now, {None: bits}, {}, lost)
        assert torch.equal(back[3], torch.full_like(back[3], 2.0**-7 * 2.0**-bits))
        back[3] = weight[3]
        assert torch.equal(back, weight)


def test_weights_of_any_layout() -> None:
    """A weight that lies in columns keeps its strides."""
    weight = small(24, 16).t()
    now, lost = moved(weight, {}, {None: -9}, None)
    assert now.stride() == weight.stride()
    assert torch.equal(moved(now, {None: -9}, {}, lost)[0], weight)


def test_a_fold_in_float16_is_undone_bit_for_bit() -> None:
    """A model in float16 is what it was, after any moves; so is a copy of it."""
    model: Any = engineered("llama").half()
    before = {name: one.clone() for name, one in model.named_parameters()}
    fold = Fold(model)
    for bits in (6, 13, 3, 9):
        fold.move_to(Rescale(((residual(model), bits),)))
    assert max(fold.losses().values()) > 0
    model.fold = fold
    copied = copy.deepcopy(model)
    for one in (model, copied):
        one.fold.undo()
        assert all(torch.equal(value, before[name]) for name, value in one.named_parameters())
        assert one.fold.losses() == {}
