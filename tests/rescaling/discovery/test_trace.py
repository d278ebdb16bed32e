"""What one run shows of a network of which everything is known."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from rescaling.discovery.by_hand import BATCHES, Block, NormedBlock, network
from torch import Tensor, nn

from safe_dtype.rescaling.discovery.trace import (
    Stack,
    first_given,
    first_returned,
    is_small_leaf,
    trace,
    unchanged,
    with_first,
    with_first_given,
)

IDS, FIRST, SECOND = torch.arange(3), torch.ones(2), torch.zeros(2)


def test_order() -> None:
    """Modules stand in the order in which they finish: what is inside before what is around it."""
    block = ["norm", "up", "down"]
    blocks = [f"layers.{place}{inside}" for place in (0, 1) for inside in (*(f".{one}" for one in block), "")]
    found = trace(network(), BATCHES)
    assert list(found.order) == ["embed", *blocks, "norm", "head", ""]
    assert list(found.order.values()) == list(range(12))


def test_norms_and_stacks() -> None:
    """Norms are told by what they do, and the blocks that hand the hidden state on are one stack."""
    found = trace(network(), BATCHES)
    assert found.norms == {"layers.0.norm", "layers.1.norm", "norm"}
    assert found.stacks == (Stack(("layers",), ("layers.0", "layers.1"), normalised=False),)
    assert trace(network(NormedBlock), BATCHES).stacks == (
        Stack(("layers",), ("layers.0", "layers.1"), normalised=True),
    )


class Affine(nn.Module):
    """Not a norm: larger inputs give larger outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(6)), 1e-6

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape (..., 6)."""
        return hidden * self.weight + self.eps


def test_a_norm_by_name_only() -> None:
    """A module that has an eps and stands where a norm does is none if it does not forget the size of its input."""
    model = network()
    model.norm = Affine().double()
    assert trace(model, BATCHES).norms == {"layers.0.norm", "layers.1.norm"}


class Sometimes(Block):
    """A block of which one half runs for large tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(6, 6, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (..., 6) to the same shape."""
        return super().forward(hidden) if hidden.shape[1] < 4 else hidden + self.other(hidden)


def test_what_runs_later() -> None:
    """A module that the first batch leaves out is found in a later one, after all others; one that never runs is before."""
    short = {"input_ids": torch.tensor([[1, 2]])}
    found = trace(network(Sometimes), [BATCHES[0], short])
    assert found.order["layers.0.other"] < found.order[""] < found.order["layers.0.norm"]
    without = trace(network(Sometimes), BATCHES)
    assert "layers.0.up" not in without.order
    assert without.when("layers.0.up") < without.when("layers.1.up") < 0 <= without.when("embed")
    assert found.when("layers.0.up") == found.order["layers.0.up"]


def test_other_batches_are_left_out() -> None:
    """Where the first batch runs everything the others are not run."""
    model = network()
    ran: list[int] = []
    model.embed.register_forward_hook(lambda *_: ran.append(1))
    trace(model, BATCHES)
    assert len(ran) == 1


def test_it_comes_back_as_it_was() -> None:
    """No hook, no state and no gradient is left."""
    model = network()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    trace(model, BATCHES)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.get_default_dtype() == torch.float32


def test_unchanged() -> None:
    """Attributes that modelling code sets on the way are set back or taken away."""
    module = nn.Linear(2, 2)
    module.count = 1
    with unchanged(module):
        module.count, module.seen = 2, FIRST
    assert module.count == 1
    assert not hasattr(module, "seen")


def test_small_leaves() -> None:
    """Norms are leaves without matrices; linear modules and containers are none."""
    assert is_small_leaf(nn.LayerNorm(3))
    assert is_small_leaf(nn.ReLU())
    assert not is_small_leaf(nn.Linear(3, 3))
    assert not is_small_leaf(nn.Sequential(nn.ReLU()))


# The first tensor

Pair = namedtuple("Pair", "first second")  # as libraries make them


@pytest.mark.parametrize(
    ("args", "kwargs", "first"),
    [
        pytest.param((FIRST, SECOND), {}, FIRST, id="the-first-of-two"),
        pytest.param((IDS, None, SECOND), {}, SECOND, id="after-integers"),
        pytest.param((IDS,), {"mask": IDS, "hidden": SECOND}, SECOND, id="by-name"),
        pytest.param((IDS,), {"cache": object()}, None, id="none"),
    ],
)
def test_first_given(args: tuple[Any, ...], kwargs: dict[str, Any], first: Tensor | None) -> None:
    """The first floating tensor of a call is what an input's move moves, wherever it stands in it."""
    assert first_given(args, kwargs) is first
    changed_args, changed_kwargs = with_first_given(args, kwargs, lambda one: one + 5)
    for before, after in zip((*args, *kwargs.values()), (*changed_args, *changed_kwargs.values()), strict=True):
        if before is first and first is not None:
            assert torch.equal(after, first + 5)
        else:
            assert after is before
    assert changed_kwargs.keys() == kwargs.keys()


@pytest.mark.parametrize(
    ("output", "first"),
    [
        pytest.param(FIRST, FIRST, id="a-tensor"),
        pytest.param((FIRST, SECOND), FIRST, id="a-tuple"),
        pytest.param(([FIRST], SECOND), FIRST, id="a-list-in-a-tuple"),
        pytest.param(Pair(FIRST, SECOND), FIRST, id="a-named-tuple"),
        pytest.param((IDS, FIRST), None, id="integers-first"),
        pytest.param((), None, id="nothing"),
        pytest.param(None, None, id="none"),
    ],
)
def test_first_returned(output: Any, first: Tensor | None) -> None:
    """Of an output the very first tensor counts, if it floats; it is replaced where it stands, the kind stays."""
    assert first_returned(output) is first
    changed = with_first(output, lambda one: one + 5)
    assert type(changed) is type(output)
    if first is not None:
        moved = first_returned(changed)
        assert moved is not None
        assert torch.equal(moved, first + 5)
        assert not isinstance(output, tuple) or changed[1] is output[1]
