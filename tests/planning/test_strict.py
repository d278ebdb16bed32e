"""Strict mode in plans: the saved dtype or the ordered one, and nothing done that nobody asked for."""

from __future__ import annotations

import pickle

import factories as f
import pytest

from safe_dtype.errors import StrictModeError
from safe_dtype.facts import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    DeviceFacts,
    Dtype,
)
from safe_dtype.planning import Policy, make_plan


def test_strict_order_is_not_rescaled() -> None:
    """In strict mode nothing is changed: no rescale, and a warning."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, half=f.rescued()), Policy(mode="strict"), ordered=FLOAT16)
    assert (plan.storage, plan.rescale, plan.islands) == (FLOAT16, None, ())


@pytest.mark.parametrize(
    ("device", "ordered"),
    [pytest.param(f.RDNA2, BFLOAT16, id="crashes"), pytest.param(f.GTX_1660, FLOAT16, id="wrong")],
)
def test_strict_order(device: DeviceFacts, ordered: Dtype) -> None:
    """In strict mode an order that does not do here is an error that names what would work."""
    with pytest.raises(StrictModeError, match=r"Would work: .*float32"):
        make_plan(device, f.checkpoint(BFLOAT16), Policy(mode="strict"), ordered=ordered)


def test_strict_keeps_saved() -> None:
    """In strict mode without an order the saved dtype stays, slow or not, with no dtype to step down to."""
    plan = make_plan(f.AVX2_CPU, f.checkpoint(BFLOAT16), Policy(mode="strict"))
    assert plan.storage == BFLOAT16
    assert plan.ladder == (BFLOAT16,)


@pytest.mark.parametrize(
    ("ordered", "whose", "would_work"),
    [
        pytest.param(None, "bfloat16 is kept in strict mode, as saved,", ("float16",), id="as-saved"),
        pytest.param(FLOAT32, "float32 was ordered,", ("float16",), id="an-order"),
    ],
)
def test_strict_is_held_to_the_ladder(ordered: Dtype | None, whose: str, would_work: tuple[str, ...]) -> None:
    """A ladder that leaves out what strict mode has to load contradicts it: an error, and it names what is on the ladder."""
    policy = Policy.parse("strict,ladder=fp16")
    with pytest.raises(StrictModeError, match="ladder leaves it out, and has to name it in strict mode") as caught:
        make_plan(f.AVX2_CPU, f.checkpoint(BFLOAT16), policy, ordered=ordered)
    assert str(caught.value).startswith(whose)
    assert caught.value.would_work == would_work
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert make_plan(f.AVX2_CPU, f.checkpoint(BFLOAT16), policy, ordered=FLOAT16).storage == FLOAT16


def test_strict_with_nothing_else_on_the_ladder() -> None:
    """Where no dtype of the ladder runs, the error advises none."""
    with pytest.raises(StrictModeError, match=r"Would work: none\. Next: leave the dtype to the plan"):
        make_plan(f.GTX_1660, f.checkpoint(BFLOAT16), Policy.parse("strict,ladder=fp16"))


def test_strict_says_that_nobody_asked() -> None:
    """A saved dtype that is slow is not said to have been asked for."""
    (warning,) = make_plan(f.AVX2_CPU, f.checkpoint(BFLOAT16), Policy(mode="strict")).warnings
    assert warning.startswith("bfloat16 is kept, as saved, and on AVX2 CPU it is slow")


def test_strict_never_spreads() -> None:
    """In strict mode a model that does not fit is left whole, with a warning."""
    plan = make_plan(f.TURING, f.checkpoint(BFLOAT16, billions=40), Policy(mode="strict"))
    assert plan.device_map is None
    assert any("may not load" in warning for warning in plan.warnings)
