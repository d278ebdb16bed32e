"""A weight that a rescale moves may lose as much as bfloat16 would round it by, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safe_dtype.errors import RescaleError
from safe_dtype.facts import Gauge, Move, Part, Rescale
from safe_dtype.rescaling.folding.underflow import lost_in_half, moved
from safe_dtype.rescaling.lost_bits import require_bits_kept, require_little_lost


def small_weights() -> nn.Module:
    """Return a model of one linear weight, whose numbers are about 2^-5."""
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    nn.init.normal_(model[0].weight, std=2.0**-5, generator=torch.Generator().manual_seed(0))
    return model.bfloat16()


def down_by(bits: int, name: str = "0.weight") -> Rescale:
    """Return a rescale that moves one weight down."""
    return Rescale(((Gauge("mlp", (Move(Part.WEIGHT, name, -1),)), bits),))


def test_few_bits() -> None:
    """What stays in float16's range loses nothing."""
    require_bits_kept(small_weights(), down_by(6), ())


def test_many_bits() -> None:
    """What is moved far below it is refused, by name."""
    with pytest.raises(RescaleError, match=r"0\.weight would lose 0\.0\d+ of its size"):
        require_bits_kept(small_weights(), down_by(14), ())


def test_what_is_in_float32_loses_nothing() -> None:
    """An island is not in float16."""
    require_bits_kept(small_weights(), down_by(14), ("0",))


def test_no_such_weight() -> None:
    """A name that the model has not is an error of the rescale."""
    with pytest.raises(RescaleError, match=r"has no 1\.weight"):
        require_bits_kept(small_weights(), down_by(1, "1.weight"), ())


def test_no_number_is_too_much() -> None:
    """A loss that is not a number is none that may be taken."""
    with pytest.raises(RescaleError):
        require_little_lost("weight", float("nan"))


@pytest.mark.parametrize("shape", [(), (7,), (16, 24)], ids=str)
def test_it_is_what_a_move_loses(shape: tuple[int, ...]) -> None:
    """Foreseen from the weight before it is cast, and counted once it is moved in float16, the loss is the same."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half().float() * 2.0**-8
    weight = weight.half().float()  # exact in float16 as it is
    _, lost = moved(weight.half(), {}, {None: -10}, None)
    assert lost is not None
    assert lost_in_half(weight, {None: -10}) == pytest.approx(lost.error, rel=0.02)
