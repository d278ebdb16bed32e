"""A weight that a rescale moves may lose as much as bfloat16 would round it by, and no more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from safe_dtype.errors import RescaleError
from safe_dtype.facts import Gauge, Move, Part, Rescale
from safe_dtype.rescaling.folding.fold import Fold
from safe_dtype.rescaling.folding.underflow import lost_in_half, moved
from safe_dtype.rescaling.lost_bits import require_bits_kept, require_folded_bits_kept, require_little_lost


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


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_no_number_is_too_much(name: str) -> None:
    """A loss that is not a number is none that may be taken."""
    with pytest.raises(RescaleError):
        require_little_lost(name, float("nan"))


def test_beyond_the_end() -> None:
    """What would become infinite is not said to be lost below float16's range."""
    with pytest.raises(RescaleError, match=r"0\.weight would go beyond float16's end"):
        require_bits_kept(small_weights(), down_by(-24), ())


def test_a_bias_may_be_lost() -> None:
    """A bias is added to a sum in float16, which is rounded by as much as the bias can lose."""
    model = nn.Linear(32, 32, dtype=torch.bfloat16)
    nn.init.constant_(model.bias, 2.0**-12)
    require_bits_kept(model, down_by(14, "bias"), ())
    exact = model.bias.detach().float() * 2.0**-14
    assert (exact.half().float() - exact).abs().max() <= torch.finfo(torch.float16).smallest_normal * 2.0**-11


def test_a_bias_beyond_the_end() -> None:
    """A bias that would become infinite is refused as a weight is: no rounding of a sum hides that."""
    model = nn.Linear(32, 32, dtype=torch.bfloat16)
    nn.init.constant_(model.bias, 2.0**10)
    with pytest.raises(RescaleError, match="bias would go beyond float16's end"):
        require_bits_kept(model, down_by(-8, "bias"), ())


def test_all_of_it_is_lost() -> None:
    """What vanishes is said to be lost below the range, and not to go beyond the end."""
    _, lost = moved(torch.full((4,), 2.0**-20).half(), {}, {None: -10}, None)
    assert lost is not None
    assert lost.error == 1.0
    require_little_lost("bias", lost.error)
    with pytest.raises(RescaleError, match="weight would lose 1 of its size"):
        require_little_lost("weight", lost.error)


def test_what_is_lost_without_a_move() -> None:
    """A weight that float16 does not hold as it was saved is no reason against a move that takes no more of it."""
    model = small_weights()
    with torch.no_grad():
        model[0].weight.mul_(2.0**-16)
    require_bits_kept(model, down_by(-1), ())
    with pytest.raises(RescaleError, match=r"0\.weight would lose"):
        require_bits_kept(model, down_by(1), ())


@pytest.mark.parametrize("bits", [6, 14])
def test_folded_in_it_is_the_same(bits: int) -> None:
    """What is folded in already is judged as what is foreseen."""
    model = small_weights()
    fold = Fold(model)
    fold.move_to(down_by(bits))
    if bits == 6:
        require_folded_bits_kept(fold)
        return
    with pytest.raises(RescaleError) as folded:
        require_folded_bits_kept(fold)
    fold.undo()
    with pytest.raises(RescaleError) as foreseen:
        require_bits_kept(model, down_by(bits), ())
    assert str(folded.value) == str(foreseen.value)


@pytest.mark.parametrize("shape", [(), (7,), (16, 24)], ids=str)
def test_it_is_what_a_move_loses(shape: tuple[int, ...]) -> None:
    """Foreseen from the weight before it is cast, and counted once it is moved in float16, the loss is the same."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).half().float() * 2.0**-8
    weight = weight.half().float()  # exact in float16 as it is
    _, lost = moved(weight.half(), {}, {None: -10}, None)
    assert lost is not None
    assert lost_in_half(weight, {None: -10}) == pytest.approx(lost.error, rel=0.02)
