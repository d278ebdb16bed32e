"""How far outputs lie from each other, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from safe_dtype.dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.optimizing.distance import INFINITELY_FAR, distance_between, form_problem
from safe_dtype.optimizing.record import Distance

REFERENCE = {"logits": torch.tensor([[1.0, -4.0], [2.0, 0.5]])}


def test_same() -> None:
    """Equal outputs have no distance, and agree on every choice."""
    assert distance_between(REFERENCE, REFERENCE) == Distance(0.0, 0.0, 1.0, 1.0, 0)


def test_relative_to_the_largest() -> None:
    """The largest difference counts against the largest value of the reference."""
    found = distance_between({"logits": REFERENCE["logits"] + torch.tensor([[0.0, 0.0], [0.0, 2.0]])}, REFERENCE)
    assert (found.max_abs, found.relative, found.top1_agreement) == (2.0, 0.5, 0.5)
    assert 0 < found.cosine < 1


def test_worst_output() -> None:
    """Of several outputs the worst counts, each against its own size: a small one is not drowned by a large one."""
    reference = {"large": torch.full((4,), 1e6), "small": torch.full((4,), 1e-3)}
    found = distance_between({"large": reference["large"], "small": reference["small"] * 2}, reference)
    assert found.relative == pytest.approx(1.0)
    assert found.top1_agreement is None


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param({}, id="none"),
        pytest.param({"other": REFERENCE["logits"]}, id="name"),
        pytest.param({"logits": REFERENCE["logits"][:1]}, id="shape"),
        pytest.param({**REFERENCE, "more": torch.zeros(1)}, id="one-too-many"),
    ],
)
def test_not_comparable(outputs: dict[str, torch.Tensor]) -> None:
    """Other names and other shapes are infinitely far."""
    found = distance_between(outputs, REFERENCE)
    assert found == INFINITELY_FAR
    assert form_problem(found, FLOAT32)


def test_nothing_to_compare() -> None:
    """Two runs without outputs are not equal: they say nothing."""
    assert distance_between({}, {}) == INFINITELY_FAR


def test_order_does_not_matter() -> None:
    """Safetensors gives tensors back in an order of its own."""
    one, two = torch.ones(2), torch.zeros(2)
    assert distance_between({"a": one, "b": two}, {"b": two, "a": one}).max_abs == 0.0


def test_new_nan() -> None:
    """A NaN that the reference has not is counted, whatever the rest looks like."""
    outputs = {"logits": torch.tensor([[1.0, -4.0], [math.nan, math.inf]])}
    found = distance_between(outputs, REFERENCE)
    assert found.nonfinite == 2
    assert "2 values" in form_problem(found, BFLOAT16)


def test_infinities_of_the_reference() -> None:
    """Masked logits are -inf on both sides, and that is no distance."""
    masked = {"logits": torch.tensor([[1.0, -math.inf, math.nan]])}
    assert distance_between(masked, masked) == Distance(0.0, 0.0, 1.0, 1.0, 0)


def test_infinity_lost() -> None:
    """A number where the reference is infinite is infinitely far, and a problem."""
    found = distance_between({"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([1.0, math.inf])})
    assert math.isinf(found.max_abs)
    assert form_problem(found, FLOAT32)


def test_zeros() -> None:
    """Against zeros only zeros are near."""
    zeros = {"x": torch.zeros(3)}
    assert distance_between(zeros, zeros) == Distance(0.0, 0.0, 1.0, None, 0)
    assert math.isinf(distance_between({"x": torch.full((3,), 1e-9)}, zeros).relative)


def test_top1_of_images() -> None:
    """Of (batch, classes, height, width) the choice is over the classes."""
    reference = torch.zeros(1, 3, 2, 2)
    reference[:, 1] = 1.0
    outputs = reference.clone()
    outputs[0, 2, 0, 0] = 1.5
    assert distance_between({"logits": outputs}, {"logits": reference}).top1_agreement == 0.75


@pytest.mark.parametrize(
    ("relative", "dtype", "fine"),
    [
        pytest.param(2e-6, FLOAT32, True, id="compiled"),
        pytest.param(1e-2, FLOAT32, False, id="wrong-branch"),
        pytest.param(4e-3, FLOAT16, True, id="half"),
        pytest.param(3e-2, BFLOAT16, True, id="bfloat16"),
        pytest.param(0.5, BFLOAT16, False, id="bad-kernel"),
    ],
)
def test_limits(relative: float, dtype: Dtype, fine: bool) -> None:
    """What was measured on sound forms passes, what was measured on wrong ones does not."""
    assert (form_problem(Distance(1.0, relative, 1.0), dtype) == "") is fine


@pytest.mark.needs("amx")
def test_amx_convolution() -> None:
    """Where a CPU has AMX, oneDNN's bfloat16 convolution of 16 channels in 4x4 patches is plainly wrong.

    Should this fail because it is right: oneDNN was repaired, and the test can go.
    """
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(16, 16, 4, 4).requires_grad_(False)
    x = torch.randn(2, 16, 16, 16)
    expected = convolution(x)
    found = convolution.bfloat16()(x.bfloat16())
    distance = distance_between({"output": found}, {"output": expected})
    assert distance.relative > 0.5
    assert form_problem(distance, BFLOAT16)
