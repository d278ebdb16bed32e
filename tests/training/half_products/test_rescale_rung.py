"""Between a smaller loss scale and float32: float16 goes on with those products scaled that overflow."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from ranks.processes import run_ranks
from torch import nn
from training.loops import BF16, FP16, FP32, Fault, Run, run

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, NoDtypeLeft, PrecisionGuard, TorchLoop
from safe_dtype.errors import TrainingDoesNotFitError

ALL = ("embedding", "inner", "head")
EITHER = pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])


@EITHER
@pytest.mark.parametrize("micro", [1, 2])
def test_the_run_is_the_one_whose_products_were_scaled_there(uses_accelerate: bool, micro: int) -> None:
    """Gradients overflow with every loss scale: weights, optimizer, losses and random numbers are those, to the bit."""
    common: dict[str, Any] = {"first": FLOAT16, "factor": 1e10, "micro": micro, "uses_accelerate": uses_accelerate}
    failed = run(Run(**common))
    assert failed.differences(run(Run(rescale=(0, ALL), **common))) == []
    last = failed.events[-1]
    assert (last.before, last.after) == (FLOAT16, FLOAT16)
    assert last.remedy == "in float16 with scaled products of embedding, inner, head"
    assert last.message == "gradients are not finite"


class Net(nn.Module):
    """A block with a product of two layers' outputs, and layers around it."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Linear(8, 16)
        self.block = nn.ModuleDict({name: nn.Linear(16, 16) for name in ("gate", "up", "down")})
        self.head = nn.Linear(16, 4)
        self.size = size

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits; inside of the block numbers are `size` times as large."""
        hidden = self.embedding(inputs).float()
        gate, up = self.block["gate"](hidden * self.size), self.block["up"](hidden * self.size)
        logits: torch.Tensor = self.head(hidden + self.block["down"](gate * up).float() / self.size**2)
        return logits


def trained(
    model: Any,
    *,
    names: tuple[str, ...] = (),
    steps: int = 3,
    factor: float = 1.0,
    called: Any = None,
    **settings: Any,
) -> PrecisionGuard:
    """Train a model in float16 on random numbers, and return the guard."""
    loop = TorchLoop(model if called is None else called, torch.optim.SGD(model.parameters(), lr=0.01), FLOAT16)
    guard = PrecisionGuard(loop, **settings)
    guard.rescale(names)
    generator = torch.Generator().manual_seed(1)
    for window in guard.windows([torch.randn(6, 8, generator=generator) for _ in range(steps)]):
        for attempt in guard.attempts():
            with attempt:
                for inputs in window:
                    with loop.autocast():
                        loss = (model if called is None else called)(inputs).float().square().mean()
                    loop.backward(loss * factor)
                for optimizer in loop.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    return guard


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether all weights are."""
    return all(map(torch.equal, model.parameters(), other.parameters()))


class Chain(nn.Sequential):
    """Layers one after the other, with factors between them, of the numbers or of their gradients alone."""

    def __init__(self, *factors: float, of_gradients: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__(*(nn.Linear(8, 8, bias=not of_gradients) for _ in factors))
        self.factors, self.of_gradients = factors, of_gradients

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last layer returns, in float32."""
        for layer, factor in zip(self, self.factors, strict=True):
            x = layer(x).float()
            if self.of_gradients:
                x.register_hook(lambda gradient, factor=factor: gradient * factor)
            else:
                x = x * factor
        return x


def test_only_the_layers_that_overflow() -> None:
    """The output of one layer is too large: that layer alone is scaled, and stays so; the loss scale is left alone."""
    model, by_hand = Chain(1.0, 1e-6, 1.0), Chain(1.0, 1e-6, 1.0)
    for net in (model, by_hand):
        nn.init.constant_(net[1].bias, 1e5)
    guard = trained(model)
    assert (guard.dtype, guard.rescaled, len(guard.events)) == (FLOAT16, ("1",), 1)
    assert guard.loop.scaler.get_scale() == 2.0**16
    trained(by_hand, names=guard.rescaled)
    assert same(model, by_hand)


def test_only_the_layers_whose_gradients_overflow() -> None:
    """The other layers keep the loss scale that they had: their gradients are small."""
    model = Chain(1.0, 1e-9, 1e9, 1.0, of_gradients=True)
    guard = trained(model, steps=1)
    assert (guard.dtype, guard.rescaled) == (FLOAT16, ("2",))
    assert guard.loop.scaler.get_scale() == 2.0**16
    assert guard.events[-1].message == "gradients are not finite"


def test_as_much_of_the_loss_scale_as_others_bear() -> None:
    """What overflows with the first scale alone is not scaled: the loss is, by less."""
    guard = trained(Chain(1.0, 1e-9, 1e9, 100.0, of_gradients=True), steps=1)
    assert (guard.dtype, guard.rescaled) == (FLOAT16, ("2",))
    assert 2.0**4 < guard.loop.scaler.get_scale() < 2.0**16


def test_a_product_between_layers() -> None:
    """What the last layer of a block is given overflows between the layers: all of the block return float32."""
    model, by_hand = Net(1e4), Net(1e4)
    guard = trained(model)
    assert guard.rescaled == ("block.gate", "block.up", "block.down")
    trained(by_hand, names=guard.rescaled)
    assert same(model, by_hand)


def test_later_windows_find_more() -> None:
    """A layer that overflows later is scaled from there on, too."""
    model = Chain(1.0, 1e-6, 1.0)
    nn.init.constant_(model[1].bias, 1e5)
    assert trained(model, names=("0",)).rescaled == ("0", "1")


@pytest.mark.parametrize("is_in_the_state", [False, True], ids=["in place", "of a state"])
def test_a_layer_in_the_place_of_a_scaled_one(is_in_the_state: bool) -> None:
    """A program that puts another layer there between two windows, a larger head say, trains on without a failure."""
    model = Chain(1.0, 1e-6, 1.0)
    nn.init.constant_(model[1].bias, 1e5)
    loop = TorchLoop(model, torch.optim.SGD(model.parameters(), lr=0.0), FLOAT16)
    guard = PrecisionGuard(loop)

    def step() -> None:
        for attempt in guard.attempts():
            with attempt:
                with loop.autocast():
                    loss = model(torch.ones(2, 8)).square().mean()
                loop.backward(loss)
                loop.optimizers[0].step()
                loop.optimizers[0].zero_grad()

    step()
    assert (guard.rescaled, len(guard.events)) == (("1",), 1)
    if is_in_the_state:
        guard.load_state_dict(guard.state_dict())
    other = nn.Linear(8, 8)
    nn.init.constant_(other.bias, 1e5)
    model[1] = other
    loop.optimizers[0].add_param_group({"params": list(other.parameters())})
    step()
    assert (guard.dtype, guard.rescaled, len(guard.events)) == (FLOAT16, ("1",), 1)
    assert type(model[1]) is nn.Linear
    model[1] = nn.Identity()
    step()
    assert (guard.dtype, guard.rescaled, len(guard.events)) == (FLOAT16, (), 1)


def test_gradients_are_those_of_float32() -> None:
    """Within the rounding of float16, where large gradients and small ones meet that no loss scale holds together."""
    ours, exact = (Chain(1e-12, 1e9, 1e9, 1.0, of_gradients=True) for _ in range(2))
    seen: list[torch.Tensor] = []
    for layer in ours:
        layer.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.clone()))
    guard = trained(ours, steps=1)
    assert guard.dtype == FLOAT16
    exact(torch.randn(6, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    for found, layer in zip(reversed(seen[-4:]), exact, strict=True):
        expected = layer.weight.grad * guard.loop.scaler.get_scale()
        assert float((found - expected).norm() / expected.norm()) < 2**-8


@EITHER
def test_where_it_cures_nothing_float32_follows(uses_accelerate: bool) -> None:
    """NaN in float16, of no product: one attempt more, and the run is the one that went to float32."""
    failed = run(Run(fault=Fault("nan", 1, (BF16, FP16)), uses_accelerate=uses_accelerate))
    switched = run(Run(switch=(1, FLOAT32), uses_accelerate=uses_accelerate))
    assert failed.differences(switched) == []
    assert [event.after for event in failed.events] == [FLOAT16, FLOAT32]
    assert failed.calls == switched.calls + 3
    with pytest.raises(NoDtypeLeft):
        run(Run(fault=Fault("nan", 1, (BF16, FP16, FP32)), uses_accelerate=uses_accelerate))


def test_gradients_that_overflow_elsewhere() -> None:
    """What is no product overflows with the first scales, while products are looked at: a smaller one is watched."""
    model = Chain(1.0, 1e-6, 1.0)
    nn.init.constant_(model[1].bias, 1e5)
    model.register_forward_hook(lambda _model, _inputs, output: (output.half() * 1e4).float() * 1e-2)
    guard = trained(model, factor=100.0, steps=1)
    assert (guard.dtype, guard.rescaled) == (FLOAT16, ("1",))
    remedies = [event.remedy.partition(" ")[0] for event in guard.events]
    assert remedies[0] == "loss"


def test_not_asked_for() -> None:
    """`rescales=False`: float32 follows at once."""
    guard = trained(Net(1e4), rescales=False)
    assert (guard.dtype, guard.rescaled) == (FLOAT32, ())


@pytest.mark.filterwarnings("ignore:a step in float16")  # the first step is warned of, and fits all the same
def test_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Where float32 does not fit as it is, no products are looked at: that takes as much."""
    with caplog.at_level(logging.INFO), pytest.raises(TrainingDoesNotFitError):
        trained(Net(1e4), max_memory={"cpu": 1000})
    assert "which products overflow" not in caplog.text


def test_memory_that_runs_out_while_products_are_looked_at() -> None:
    """That attempt took more than training does: float32 follows, which is looked at before."""
    model = Net(1e4)

    def run_out(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.dtype is torch.float32 and torch.is_autocast_enabled("cpu"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    model.head.register_forward_hook(run_out)
    assert trained(model).dtype == FLOAT32


def test_gradients_that_overflow_elsewhere_on_their_way_back() -> None:
    """Infinite ones reach the layers before the loss scale is small enough: no layer is scaled for an attempt that failed."""
    model = Chain(1.0, 1e-6, 1.0)
    nn.init.constant_(model[1].bias, 1e5)
    model[2].register_forward_pre_hook(lambda _layer, inputs: (inputs[0].half() * 1.0,))
    guard = trained(model, factor=1e4, steps=1)
    assert (guard.dtype, guard.rescaled) == (FLOAT16, ("1",))
    assert guard.loop.scaler.get_scale() < 2.0**16


class Unlike(Chain):
    """Layers whose outputs `meet` is given, of which one overflows."""

    def __init__(self, meet: Any) -> None:
        super().__init__(1.0, 1.0, 1.0)
        nn.init.constant_(self[1].bias, 1e5)
        self.meet = meet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last layer returns."""
        outputs: torch.Tensor = self[2](self.meet(self[0](x), self[1](x) * 1e-6))
        return outputs


def _scattered(some: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return some.scatter(0, torch.zeros(other.shape, dtype=torch.long), other)


def _checked(some: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if some.dtype != other.dtype:
        raise ValueError("query and key are of two kinds")
    return some + other


@pytest.mark.parametrize("meet", [_scattered, _checked])
def test_programs_that_take_no_float32_between_layers(meet: Any) -> None:
    """What they raise is no fault of theirs: float32 follows, as it would have without this rung."""
    guard = trained(Unlike(meet))
    assert (guard.dtype, guard.rescaled, guard.windows_done) == (FLOAT32, (), 3)
    switched = Unlike(meet)
    model = Unlike(meet)
    trained(model)
    trained(switched, rescales=False)
    assert same(model, switched)


class Derived(nn.Module):
    """A layer that overflows, and its derivative, by `torch.func`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chain(1.0, 1e-6, 1.0)
        nn.init.constant_(self.inner[1].bias, 1e5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both."""
        output, derivative = torch.func.jvp(self.inner, (x,), (x,))
        return torch.add(output, derivative)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # by torch itself, as jvp is used first
def test_derivatives_in_forward_mode() -> None:
    """`torch.func` takes no scaled product: float32 follows."""
    guard = trained(Derived())
    assert (guard.dtype, guard.windows_done) == (FLOAT32, 3)


def test_errors_of_the_program_come_out() -> None:
    """What a program raises while products are looked at is raised in float32 too, and comes out of that."""
    met: list[torch.dtype] = []

    def meet(some: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        met.append(some.dtype)
        if len(met) > 1:
            raise KeyError("labels")
        return some + other

    with pytest.raises(KeyError):
        trained(Unlike(meet))
    assert met[:2] == [torch.float16, torch.float32]


@pytest.mark.parametrize("part", ["whole", "block"])
def test_compiled_models_come_down_to_float32(part: str) -> None:
    """What a compiler has made of a layer computes as that did."""
    model: Any = Net(1e4)
    if part == "block":
        model.head.compile(backend="eager")
    guard = trained(model, called=torch.compile(model, backend="eager") if part == "whole" else None)
    assert (guard.dtype, guard.rescaled) == (FLOAT32, ())


def test_kept_in_the_state_of_the_guard() -> None:
    """A guard that is given the state goes on with the same products scaled, and one of before knows of none."""
    guard = trained(Net(1e4), steps=1)
    state = guard.state_dict()
    assert state["rescaled"] == ["block.gate", "block.up", "block.down"]
    model = Net(1e4)
    resumed = PrecisionGuard(TorchLoop(model, torch.optim.SGD(model.parameters()), BFLOAT16))
    resumed.load_state_dict(state)
    assert (resumed.dtype, resumed.rescaled) == (FLOAT16, guard.rescaled)
    del state["rescaled"]
    resumed.load_state_dict(state)
    assert resumed.rescaled == ()


def test_several_models() -> None:
    """Layers of the second model are found, too."""
    some, other = nn.Linear(8, 8), Net(1e4)
    loop = TorchLoop([some, other], torch.optim.SGD([*some.parameters(), *other.parameters()], lr=0.01), FLOAT16)
    guard = PrecisionGuard(loop)
    for attempt in guard.attempts():
        with attempt:
            with loop.autocast():
                loss = other(some(torch.ones(2, 8)).float()).float().square().mean()
            loop.backward(loss)
            loop.optimizers[0].step()
    assert guard.rescaled == ("1/block.gate", "1/block.up", "1/block.down")


def _differs_on_ranks() -> Any:
    torch.set_num_threads(1)
    common: dict[str, Any] = {"first": FLOAT16, "micro": 2}
    rank = torch.distributed.get_rank()
    failed = run(Run(factor=1e10 if rank else 1e-2, **common))
    by_hand = run(Run(factor=1e10 if rank else 1e-2, rescale=(0, ALL), **common))
    return failed.differences(by_hand), [event.remedy for event in failed.events][-1:], failed.calls


@pytest.mark.slow
def test_all_ranks_scale_what_overflows_on_one() -> None:
    """Under DistributedDataParallel: the run of each is the one that was scaled by hand."""
    results = run_ranks(_differs_on_ranks, 2)
    remedy = ["in float16 with scaled products of embedding, inner, head"]
    assert [result[:2] for result in results] == [([], remedy)] * 2
    assert results[0][2] == results[1][2]
