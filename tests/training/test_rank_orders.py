"""One decision for all ranks, whatever each was asked for and measured."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
from factories import device
from ranks.processes import OLDER_CPU, Launch, run_ranks

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype, Verdict, VerdictKind
from safe_dtype.training.rank_orders import TrainingOrder, decide_for_all, orders_of

NATIVE, SLOW = VerdictKind.NATIVE, VerdictKind.SLOW


def order(bfloat16: VerdictKind | None = NATIVE, asked: Dtype = BFLOAT16, *, scales: bool = True) -> TrainingOrder:
    """Return the order of a rank whose device trains so in bfloat16, and well in float16; None: nobody could measure."""
    kinds = {FLOAT32: NATIVE, BFLOAT16: bfloat16, FLOAT16: NATIVE} if bfloat16 else {}
    verdicts = tuple(Verdict(dtype, "matmul_training", kind or NATIVE, "") for dtype, kind in kinds.items())
    return TrainingOrder(asked, replace(device("card", extra=verdicts), vendor="nvidia"), scales)


@pytest.mark.parametrize(
    ("orders", "chosen"),
    [
        pytest.param([order(), order()], BFLOAT16, id="all-have-it"),
        pytest.param([order(), order(SLOW)], FLOAT16, id="the-second-has-not"),
        pytest.param([order(SLOW), order()], FLOAT16, id="the-first-has-not"),
        pytest.param([order(SLOW), order(scales=False)], FLOAT32, id="one-cannot-scale"),
        pytest.param([order(), order(asked=FLOAT32)], FLOAT32, id="asked-for-two"),
        pytest.param([order(None), order()], BFLOAT16, id="nobody-could-measure-the-first"),
    ],
)
def test_one_dtype_for_all(orders: list[TrainingOrder], chosen: Dtype) -> None:
    """The weakest device decides; what is not known changes nothing; different orders end in float32."""
    assert decide_for_all(orders).chosen == chosen


def test_a_message() -> None:
    """What another rank reads decides as the original does."""
    sent = order(SLOW)
    read = TrainingOrder.from_text(sent.to_text())
    assert read.device.verdicts == sent.device.verdicts
    assert decide_for_all([read]) == decide_for_all([sent])


def test_without_ranks() -> None:
    """One process has its own order and asks nobody."""
    assert orders_of(None, order()) == (order(),)


def accelerated() -> tuple[str, int]:
    """Make an Accelerator under `patch`; return its precision, and how often that was warned of."""
    from accelerate import Accelerator

    import safe_dtype

    safe_dtype.patch(tell="nothing")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", safe_dtype.SafeDtypeWarning)
        made = Accelerator(mixed_precision="bf16")
    return made.mixed_precision, sum("float32's time" in str(one.message) for one in caught)


@pytest.mark.slow
@pytest.mark.needs("x86")
def test_ranks_on_two_kinds_of_cpus() -> None:
    """Where one of two ranks emulates bfloat16, both train in float32, and the first says why, once."""
    assert run_ranks(accelerated, 2, launch=Launch(environments={1: OLDER_CPU})) == [("no", 1), ("no", 0)]
