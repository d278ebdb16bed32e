"""Laid-out modules under transforms, modes and tangents compute as plain ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from numerics.laid_out import MARKS, logits, near
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from safe_dtype import compute_in, guard
from safe_dtype.models.block_layout import blocks_of

pytestmark = MARKS


BF16 = torch.bfloat16


def first(model: Any) -> nn.Linear:
    """Return one linear module."""
    return model.model.decoder.layers[0].fc1


def _dual(run: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(run(forward_ad.make_dual(x, torch.ones_like(x)))))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "vmap": lambda run, x: torch.vmap(run)(x),
    "jvp": lambda run, x: torch.func.jvp(run, (x,), (torch.ones_like(x),)),
    "jacfwd": lambda run, x: torch.func.jacfwd(run)(x[0]),
    "jacrev": lambda run, x: torch.func.jacrev(run)(x[0]),
    "vjp": lambda run, x: torch.func.vjp(run, x)[1](torch.ones_like(run(x))),
    "functionalize": lambda run, x: torch.func.functionalize(run)(x),
    "dual-numbers": _dual,
}


@pytest.mark.parametrize("guarded", [False, True], ids=["laid-out", "guarded"])
@pytest.mark.parametrize("rows", [2, 20])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms(transform: Callable[..., Any], rows: int, guarded: bool, model: Any, plain: Any) -> None:
    """A transform of a laid-out module is that of a plain one, bit for bit, and the blocks are still there."""
    x = torch.randn(rows, 512, dtype=BF16)
    module, expected = first(model).requires_grad_(False), first(plain).requires_grad_(False)
    if guarded:
        guard(module)
    with torch.no_grad():
        for one, other in zip(transform(module, x), transform(expected, x), strict=True):
            assert torch.equal(one, other)
    assert blocks_of(module) is not None


def test_weights_with_tangents(model: Any, plain: Any) -> None:
    """A tangent of a weight, given for one call, reaches the result, also where its product would be cast in pieces."""
    x, slope = torch.randn(20, 512, dtype=BF16), torch.randn(8192, 512, dtype=BF16)
    weight = torch.randn(8192, 512, dtype=BF16)

    def run() -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(weight, slope)
            return forward_ad.unpack_dual(F.linear(x, dual)).tangent

    with torch.no_grad():
        expected = run()
        with compute_in("float32"):
            found = run()
        assert near(found, expected)
        with compute_in("float32"):  # and nothing is left of it
            assert near(F.linear(x, weight), F.linear(x, weight))
            assert F.linear(x, weight).requires_grad is False


class Seeing(TorchFunctionMode):
    """Sees what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write down."""
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


def test_modes_see_the_calls_of_a_plain_model(model: Any, plain: Any) -> None:
    """Who intercepts torch's functions, or counts operations, sees what a plain model does."""
    counted = []
    for one in (model, plain):
        with Seeing() as mode, torch.no_grad():
            first(one)(torch.ones(1, 512, dtype=BF16))
        with FlopCounterMode(display=False) as flops:
            logits(one, 1)
        counted.append((mode.seen, flops.get_total_flops()))
    assert counted[0] == counted[1]
    assert counted[0][1] > 0


@pytest.mark.parametrize(
    "contexts",
    [
        pytest.param([lambda: torch.device("cpu")], id="default-device"),
        pytest.param([lambda: compute_in("float32")], id="compute-in"),
        pytest.param([torch.inference_mode], id="inference-mode"),
    ],
)
def test_contexts_in_which_blocks_are_multiplied(contexts: list[Any], model: Any, plain: Any) -> None:
    """Contexts that leave products alone do no harm to the layout."""
    x = torch.randn(1, 512, dtype=BF16)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        expected = first(model)(x)
        assert not torch.equal(expected, first(plain)(x))
        for context in contexts:
            stack.enter_context(context())
        assert torch.equal(first(model)(x), expected)
