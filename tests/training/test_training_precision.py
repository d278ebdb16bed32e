"""What a device trains in: facts in, choice out; and the widths of real models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import device
from tiny_models import TINY
from torch import nn
from transformers.pytorch_utils import Conv1D

from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, DeviceFacts, Dtype, Verdict, VerdictKind
from safe_dtype.planning import combine
from safe_dtype.training.training_precision import choose_precision, measure_training, widths_of, with_failed

NATIVE, SLOW, WRONG, UNSUPPORTED, CRASHES, UNKNOWN = (
    VerdictKind.NATIVE, VerdictKind.SLOW, VerdictKind.WRONG, VerdictKind.UNSUPPORTED, VerdictKind.CRASHES,
    VerdictKind.UNKNOWN,
)  # fmt: skip
REASONS = {SLOW: "9x float32's time at 512 rows, 2x at 1 row", UNSUPPORTED: '"mm" not implemented', WRONG: "far off"}


def trains(
    bfloat16: VerdictKind, float16: VerdictKind, vendor: str = "nvidia", op: str = "matmul_training"
) -> DeviceFacts:
    """Return a device with these verdicts on training."""
    kinds = {FLOAT32: NATIVE, BFLOAT16: bfloat16, FLOAT16: float16}
    verdicts = tuple(Verdict(dtype, op, kind, REASONS.get(kind, "")) for dtype, kind in kinds.items())
    return replace(device("T4", extra=verdicts), vendor=vendor)


@pytest.mark.parametrize(
    ("asked", "facts", "chosen"),
    [
        pytest.param(BFLOAT16, trains(NATIVE, NATIVE), BFLOAT16, id="it-works"),
        pytest.param(BFLOAT16, trains(SLOW, NATIVE), FLOAT16, id="a-t4"),
        pytest.param(BFLOAT16, trains(UNSUPPORTED, NATIVE), FLOAT16, id="not-there"),
        pytest.param(BFLOAT16, trains(CRASHES, SLOW), FLOAT32, id="both-bad"),
        pytest.param(BFLOAT16, trains(WRONG, WRONG), FLOAT32, id="wrong-gradients"),
        pytest.param(BFLOAT16, trains(SLOW, UNKNOWN), FLOAT32, id="nobody-knows-the-next"),
        pytest.param(BFLOAT16, trains(UNKNOWN, NATIVE), BFLOAT16, id="nobody-knows"),
        pytest.param(FLOAT16, trains(NATIVE, SLOW), FLOAT32, id="never-up-the-ladder"),
        pytest.param(BFLOAT16, trains(SLOW, NATIVE, "cpu"), FLOAT32, id="a-cpu-has-no-scaler"),
        pytest.param(FLOAT16, trains(SLOW, NATIVE, "cpu"), FLOAT32, id="float16-on-a-cpu"),
        pytest.param(FLOAT32, trains(SLOW, SLOW), FLOAT32, id="float32"),
    ],
)
def test_what_is_trained_in(asked: Dtype, facts: DeviceFacts, chosen: Dtype) -> None:
    """What was asked for stays where it works; else the next below it that is native, and float32 at the end."""
    choice = choose_precision(asked, facts)
    assert choice.chosen == chosen
    assert choice.is_as_asked == (not choice.reason)


@pytest.mark.parametrize(
    ("asked", "facts", "reason"),
    [
        pytest.param(BFLOAT16, trains(SLOW, SLOW), "a step of training in bfloat16 takes 9x float32's time (T4)", id="slow"),
        pytest.param(
            BFLOAT16, trains(UNSUPPORTED, SLOW, op="conv2d_training"),
            'convolutions in a step of training in bfloat16 are unsupported: "mm" not implemented (T4)', id="convolution",
        ),
        pytest.param(
            FLOAT16, trains(NATIVE, SLOW, "cpu"),
            "on a CPU accelerate has no float16, and trains in float32 without a word (T4)", id="float16-on-a-cpu",
        ),
    ],
)  # fmt: skip
def test_why(asked: Dtype, facts: DeviceFacts, reason: str) -> None:
    """The reason is the verdict's own, with the figure that it was measured by."""
    assert choose_precision(asked, facts).reason == reason


def test_what_an_earlier_attempt_failed_in() -> None:
    """It is not trained in again, whatever the device was measured to do; other dtypes keep their verdicts."""
    failed = with_failed(trains(NATIVE, NATIVE), {"bfloat16": "no kernel of attention"})
    choice = choose_precision(BFLOAT16, failed)
    assert choice.chosen == FLOAT16
    assert choice.reason == "a step of training in bfloat16 has failed: no kernel of attention (T4)"
    assert choose_precision(FLOAT16, failed).is_as_asked


def test_the_policy_names_what_may_take_its_place() -> None:
    """A ladder without float16 goes to float32; one that has neither leaves what was asked for."""
    assert choose_precision(BFLOAT16, trains(SLOW, NATIVE), ladder=(BFLOAT16, FLOAT32)).chosen == FLOAT32
    assert choose_precision(BFLOAT16, trains(SLOW, NATIVE), ladder=(BFLOAT16,)).is_as_asked


def test_float16_weights_leave_nothing_to_scale() -> None:
    """GradScaler refuses gradients in float16: a model whose weights are in it goes to float32."""
    assert choose_precision(BFLOAT16, trains(SLOW, NATIVE), scales_float16=False).chosen == FLOAT32


def test_the_weakest_rank_decides() -> None:
    """Ranks that train together take what all of them have."""
    ranks = [trains(NATIVE, NATIVE), trains(SLOW, NATIVE), trains(NATIVE, SLOW)]
    assert choose_precision(BFLOAT16, combine(ranks[:2])).chosen == FLOAT16
    assert choose_precision(BFLOAT16, combine(ranks)).chosen == FLOAT32


class Experts(nn.Module):
    """Weights of several experts in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(8, 512, 256, device="meta"))


def test_widths_are_those_of_the_model() -> None:
    """The linears that hold most numbers: also those of GPT-2, and of experts. Small models have one pair for all."""
    parts = [nn.Linear(64, 4096), nn.Linear(4096, 64), nn.Linear(8, 8), Conv1D(2048, 512), Experts()]
    assert widths_of(nn.Sequential(*parts)) == ((2048, 512), (512, 256))
    assert widths_of(TINY["qwen3"].make()) == ((256, 256),)


def test_convolutions_are_measured_where_there_are_some() -> None:
    """A model with convolutions is measured with them; a device that nobody has a model for at the usual widths."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    assert {one.op for one in measure_training("cpu", model).verdicts} == {"matmul_training", "conv2d_training"}
    assert {one.op for one in measure_training("cpu").verdicts} == {"matmul_training"}
