"""What can be multiplied in a network of which everything is known, and what that makes of its outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rescaling.discovery.by_hand import BATCHES, Block, network
from torch import Tensor, nn

from safe_dtype.facts import Part
from safe_dtype.rescaling.discovery.knobs import RAISED_EPS, Knob, knobs_of, multiply_matrices, turned
from safe_dtype.rescaling.discovery.trace import trace
from safe_dtype.rescaling.discovery.twin import run_twin

WEIGHT, NUMBER, INPUT, OUTPUT = Part.WEIGHT, Part.NUMBER, Part.INPUT, Part.OUTPUT


def knobs_in(model: Any) -> list[tuple[Part, str]]:
    """Return the knobs, in their order."""
    return [(knob.part, knob.target) for knob in knobs_of(model, trace(model, BATCHES), BATCHES[0])]


def test_all_of_them_in_order() -> None:
    """What the blocks are given comes first, then eps, then writers before gains, later ones before earlier ones."""
    assert knobs_in(network()) == [
        (INPUT, "layers.0"),
        (NUMBER, "norm.eps"), (NUMBER, "layers.1.norm.eps"), (NUMBER, "layers.0.norm.eps"),
        (WEIGHT, "head.weight"), (WEIGHT, "layers.1.down.weight"), (WEIGHT, "layers.1.up.weight"),
        (WEIGHT, "layers.0.down.weight"), (WEIGHT, "layers.0.up.weight"), (WEIGHT, "embed.weight"),
        (WEIGHT, "norm.weight"), (WEIGHT, "layers.1.norm.weight"), (WEIGHT, "layers.0.norm.weight"),
(NUMBER, "embed.norm_type"),  # torch's own, and of no effect without a max_norm
        (OUTPUT, "norm"), (OUTPUT, "layers.1.norm"), (OUTPUT, "layers.0.norm"), (OUTPUT, "embed"),
        (INPUT, "norm"), (INPUT, "layers.1.norm"), (INPUT, "layers.0.norm"),
    ]  # fmt: skip


class WithNumbers(Block):
    """A block with numbers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.loose = nn.Parameter(torch.ones(1))
        self.scaling, self.nothing, self.large_eps = 0.5, 0.0, 0.75
        self.count, self.flag, self.endless = 3, True, float("inf")
        self.dropout = nn.Dropout(0.25)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (..., 6) to the same shape."""
        inside = self.dropout(super().forward(hidden * self.scaling + self.large_eps))
        return inside * self.loose + self.nothing


def test_numbers() -> None:
    """A number counts if a tensor can stand in its place; what is zero, whole, endless or of a dropout does not."""
    found = knobs_in(network(WithNumbers))
    numbers = [target for part, target in found if part is NUMBER and target.startswith("layers.0.")]
    assert numbers == ["layers.0.norm.eps", "layers.0.scaling", "layers.0.large_eps"]
    # An eps of 0.75 is none, and what stands loose in a block comes after the gains.
    weights = [target for part, target in found if part is WEIGHT]
    assert weights[-2:] == ["layers.1.loose", "layers.0.loose"]
    assert found.index((NUMBER, "norm.eps")) < found.index((WEIGHT, "head.weight"))
    assert found.index((NUMBER, "layers.0.large_eps")) > found.index((WEIGHT, "layers.0.loose"))


class TakenOut(Block):
    """A block that makes a Python number of what stands in its number's place."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling = 0.5

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (..., 6) to the same shape."""
        return super().forward(hidden * float(self.scaling))


@pytest.mark.needs("torch>=2.13")  # torch 2.6 does not tell of it
def test_the_same_at_every_time() -> None:
    """A number without a derivative is told at every time, though torch warns of it once a process."""
    for _ in range(2):
        assert (NUMBER, "layers.0.scaling") not in knobs_in(network(TakenOut))
    assert not torch.is_warn_always_enabled()


def test_nouns() -> None:
    """A knob knows its module, and whether it is an eps."""
    assert Knob(WEIGHT, "a.b.weight").module == "a.b"
    assert Knob(NUMBER, "a.variance_epsilon").module == "a"
    assert (Knob(INPUT, "a.b").module, Knob(OUTPUT, "a.b").module) == ("a.b", "a.b")
    assert Knob(NUMBER, "a.variance_epsilon").is_eps
    assert not Knob(NUMBER, "epsilons.scaling").is_eps
    assert not Knob(WEIGHT, "a.eps").is_eps


def state(model: nn.Module) -> dict[str, object]:
    """Return all that turning could change: the very tensors, their numbers, other numbers, hooks."""
    values: dict[str, object] = {
        f"eps of {name}": one.eps for name, one in model.named_modules() if hasattr(one, "eps")
    }
    for name, one in model.named_parameters():
        values |= {f"{name} at": one.data_ptr(), f"{name} is": one.tolist(), f"{name} needs": one.requires_grad}
    values |= {f"hooks of {name}": (len(one._forward_hooks), len(one._forward_pre_hooks))
               for name, one in model.named_modules()}  # fmt: skip
    return values


EVERY = (
    Knob(INPUT, "layers.0"), Knob(NUMBER, "norm.eps"), Knob(WEIGHT, "layers.1.down.weight"), Knob(WEIGHT, "embed.weight"),
    Knob(WEIGHT, "norm.weight"), Knob(OUTPUT, "layers.0.norm"), Knob(OUTPUT, "embed"), Knob(INPUT, "norm"),
)  # fmt: skip


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_turned(gain: float) -> None:
    """Inside every eps is raised and every matrix but the embedding multiplied; afterwards all is as it was."""
    model = network()
    before = state(model)
    matrix, embedding = model.head.weight.clone(), model.embed.weight.clone()
    with turned(model, EVERY, gain) as leaves:
        assert list(leaves) == list(EVERY)
        assert (model.layers[0].norm.eps, float(model.norm.eps.detach())) == (RAISED_EPS, RAISED_EPS)
        assert torch.equal(model.head.weight, matrix * gain)
        assert torch.equal(model.embed.weight, embedding)
    assert state(model) == before


@pytest.mark.parametrize("knob", EVERY, ids=lambda knob: f"{knob.part}-{knob.target}")
def test_derivative(knob: Knob) -> None:
    """The derivative by the logarithm of a knob is what multiplying it by a little more than 1 shows."""
    model = network()
    torch.manual_seed(1)
    cotangent = torch.randn(1, 4, 5, dtype=torch.float64)
    with torch.enable_grad(), turned(model, [knob], 1.0) as leaves:
        leaf = leaves[knob]
        (gradient,) = torch.autograd.grad((run_twin(model, BATCHES[0]) * cotangent).sum(), leaf)
        derivative = float((gradient * leaf.detach()).sum())
        step = 1e-5
        with torch.no_grad():
            leaf *= 1 + step
            more = float((run_twin(model, BATCHES[0]) * cotangent).sum())
            leaf *= (1 - step) / (1 + step)
            less = float((run_twin(model, BATCHES[0]) * cotangent).sum())
            leaf /= 1 - step
    assert derivative == pytest.approx((more - less) / (2 * step), rel=1e-5, abs=1e-9)


def test_matrices_alone() -> None:
    """Vectors and embeddings are not multiplied; each matrix gets a tensor of its own."""
    model = network()
    shared = model.head.weight.data
    before = {name: one.clone() for name, one in model.named_parameters()}
    multiply_matrices(model, 2.0)
    factors = {name: float((one / before[name]).mean()) for name, one in model.named_parameters()}
    assert {name for name, factor in factors.items() if factor == 2} == {
        "head.weight", *(f"layers.{place}.{one}.weight" for place in (0, 1) for one in ("up", "down")),
    }  # fmt: skip
    assert {factor for factor in factors.values() if factor != 2} == {1.0}
    assert torch.equal(shared, before["head.weight"])
