"""Where torch makes more of a computation than its numbers."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from safe_dtype.numerics.followed import is_followed

TRANSFORMS = {
    "vmap": torch.func.vmap,
    "grad": torch.func.grad,
    "jvp": lambda run: lambda x: torch.func.jvp(run, (x,), (x,)),
    "jacfwd": torch.func.jacfwd,
    "functionalize": torch.func.functionalize,
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_in_a_transform(transform: object) -> None:
    """Inside of a transform of `torch.func`, and not after it."""
    seen = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(is_followed())
        return x.sum()

    transform(run)(torch.ones(3))  # type: ignore[operator]
    assert seen == [True]
    assert not is_followed()


def test_in_forward_mode() -> None:
    """Inside of a level of dual numbers, and not after it."""
    with forward_ad.dual_level():
        assert is_followed()
    assert not is_followed()


def test_elsewhere() -> None:
    """Neither gradients nor inference mode count."""
    assert not is_followed()
    with torch.inference_mode():
        assert not is_followed()
    torch.ones(3, requires_grad=True).sum().backward()
    assert not is_followed()
