"""The mixed precision of a live Accelerator: everything that was prepared computes in the other dtype."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DynamoBackend, FullyShardedDataParallelPlugin, GradScalerKwargs, TorchDynamoPlugin
from torch import nn

from safe_dtype.errors import NeedsRestart, NotSwitchableError
from safe_dtype.facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from safe_dtype.training import PrecisionGuard, precision_of, switch_precision

NAMES = {BFLOAT16: "bf16", FLOAT16: "fp16", FLOAT32: "no"}
EVERY_PAIR = [(before, after) for before in NAMES for after in NAMES if before is not after]


class TinyModel(nn.Module):
    """Two layers and a loss. `dtypes` are those that its first layer has computed in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.dtypes: list[torch.dtype] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        hidden = self.up(x)
        if not torch.compiler.is_compiling():
            self.dtypes.append(hidden.dtype)
        return self.down(hidden.tanh()).square().mean()


@pytest.fixture(autouse=True)
def of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has an Accelerator of its own, on the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    forget_accelerators()
    yield
    forget_accelerators()


def forget_accelerators() -> None:
    """Forget the state that all Accelerators of this process share."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepared(dtype: Dtype, **settings: Any) -> tuple[Accelerator, Any, Any]:
    """Return an Accelerator that really trains in `dtype`, a prepared model and its optimizer."""
    accelerator = Accelerator(mixed_precision=NAMES[dtype], **settings)
    if dtype is FLOAT16:
        switch_precision(accelerator, FLOAT16)
    model = TinyModel()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    return accelerator, model, optimizer


def steps(accelerator: Accelerator, model: Any, optimizer: Any, *, first: int, last: int) -> None:
    """Train on the batches of these steps."""
    for step in range(first, last):
        loss = model(torch.randn(4, 8, generator=torch.Generator().manual_seed(step)))
        assert loss.dtype == torch.float32
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model: nn.Module) -> torch.Tensor:
    """Return all weights, as a copy."""
    return torch.cat([weight.detach().flatten().clone() for weight in model.parameters()])


@pytest.mark.parametrize(("before", "after"), EVERY_PAIR, ids=str)
def test_computes_in_the_other_dtype(before: Dtype, after: Dtype) -> None:
    """After the switch the layers compute in the new dtype, and the Accelerator says so everywhere."""
    accelerator, model, optimizer = prepared(before)
    steps(accelerator, model, optimizer, first=0, last=1)
    switch_precision(accelerator, after)
    steps(accelerator, model, optimizer, first=1, last=2)
    assert model.dtypes == [getattr(torch, before.name), getattr(torch, after.name)]
    assert precision_of(accelerator) is after
    assert accelerator.mixed_precision == NAMES[after]
    assert (accelerator.scaler is not None) == (after is FLOAT16) == (optimizer.scaler is not None)


@pytest.mark.parametrize(("before", "after"), EVERY_PAIR, ids=str)
def test_trains_as_if_prepared_so(before: Dtype, after: Dtype) -> None:
    """A switch before the first step gives the weights, bit for bit, of a run that was prepared in that dtype."""
    accelerator, model, optimizer = prepared(before)
    switch_precision(accelerator, after)
    steps(accelerator, model, optimizer, first=0, last=3)
    AcceleratorState._reset_state()
    accelerator, other, optimizer = prepared(after)
    steps(accelerator, other, optimizer, first=0, last=3)
    assert torch.equal(weights_of(model), weights_of(other))


@pytest.mark.parametrize("is_wrapped_again", [False, True], ids=["prepared once", "wrapped twice, as under DDP"])
def test_model_of_an_earlier_run(is_wrapped_again: bool) -> None:
    """A model that has come down to float16 computes in the dtype of the next Accelerator, and comes down with it."""
    accelerator, model, _ = prepared(BFLOAT16)
    switch_precision(accelerator, FLOAT16)
    forget_accelerators()
    accelerator = Accelerator(mixed_precision="bf16")
    if is_wrapped_again:
        del model._is_accelerate_prepared
    model = accelerator.prepare(model)
    PrecisionGuard(accelerator, model)
    model(torch.ones(1, 8))
    switch_precision(accelerator, FLOAT32)
    model(torch.ones(1, 8))
    assert model.dtypes == [torch.bfloat16, torch.float32]


def test_wrapped_twice_in_one_dtype() -> None:
    """All wrappers go, also where nothing was switched before."""
    accelerator, model, _ = prepared(BFLOAT16)
    del model._is_accelerate_prepared
    model = accelerator.prepare(model)
    switch_precision(accelerator, FLOAT16)
    model(torch.ones(1, 8))
    assert model.dtypes == [torch.float16]


def test_there_and_back_leaves_no_trace() -> None:
    """In float32 the forward is the method of the class again, however often it was switched: it can be pickled."""
    accelerator, model, _ = prepared(BFLOAT16)
    for dtype in (FLOAT16, FLOAT32, BFLOAT16, FLOAT32):
        switch_precision(accelerator, dtype)
    assert "forward" not in model.__dict__
    assert "_original_forward" not in model.__dict__
    assert type(pickle.loads(pickle.dumps(model))) is TinyModel


def test_forward_of_the_instance() -> None:
    """A forward that the model itself carries is what is wrapped, and what is there again afterwards."""
    accelerator = Accelerator(mixed_precision="bf16")
    model = TinyModel()
    model.forward = own = MethodType(lambda self, x: self.up(x), model)  # type: ignore[method-assign]
    model = accelerator.prepare(model)
    switch_precision(accelerator, FLOAT16)
    assert model(torch.ones(1, 8)).dtype == torch.float32
    switch_precision(accelerator, FLOAT32)
    assert model.forward is own


def test_prepared_after_the_switch() -> None:
    """What is prepared later computes in the new dtype too."""
    accelerator = Accelerator(mixed_precision="bf16")
    switch_precision(accelerator, FLOAT16)
    model = TinyModel()
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    steps(accelerator, model, optimizer, first=0, last=1)
    assert model.dtypes == [torch.float16]


def test_later_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators that are made later share the new precision; a run that begins anew has that of its launch again."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    accelerator = Accelerator()
    switch_precision(accelerator, FLOAT32)
    assert Accelerator().mixed_precision == "no"
    AcceleratorState._reset_state()
    assert Accelerator().mixed_precision == "bf16"


def test_dtype_of_another_process() -> None:
    """A dtype that was sent by another process is the same dtype."""
    accelerator, model, optimizer = prepared(BFLOAT16)
    switch_precision(accelerator, pickle.loads(pickle.dumps(FLOAT16)))
    steps(accelerator, model, optimizer, first=0, last=1)
    assert model.dtypes == [torch.float16]
    switch_precision(accelerator, pickle.loads(pickle.dumps(FLOAT32)))
    assert "forward" not in model.__dict__


def test_float16_on_a_cpu_is_float16() -> None:
    """What accelerate trains in float32 without a word is float16 with a scaler, for the device that is there."""
    accelerator = Accelerator(mixed_precision="fp16")
    assert precision_of(accelerator) is FLOAT32
    switch_precision(accelerator, FLOAT16)
    assert precision_of(accelerator) is FLOAT16
    assert accelerator.scaler._device == "cpu"
    assert accelerator.scaler.is_enabled()


def test_overflow_is_noticed_by_the_optimizer() -> None:
    """A prepared optimizer steps with the new scaler: an overflow leaves the weights alone and halves the scale."""
    accelerator, model, optimizer = prepared(BFLOAT16)
    switch_precision(accelerator, FLOAT16, init_scale=2.0**120)
    before = weights_of(model)
    steps(accelerator, model, optimizer, first=0, last=1)
    assert accelerator.optimizer_step_was_skipped
    assert torch.equal(weights_of(model), before)
    assert accelerator.scaler.get_scale() == 2.0**119
    switch_precision(accelerator, FLOAT32)
    assert not accelerator.optimizer_step_was_skipped


def test_scaler_has_the_callers_settings() -> None:
    """The settings that the caller gave accelerate for a scaler count after the switch too."""
    accelerator, _, _ = prepared(BFLOAT16, kwargs_handlers=[GradScalerKwargs(init_scale=4.0, growth_interval=7)])
    switch_precision(accelerator, FLOAT16)
    assert accelerator.scaler.get_scale() == 4.0
    assert accelerator.scaler.get_growth_interval() == 7


@pytest.mark.parametrize("order", ["before", "after", "by accelerate", "in place"])
def test_compiled(order: str) -> None:
    """A compiled model computes in the new dtype, both ways, in whatever order it was compiled and prepared."""
    by_plugin = {"dynamo_plugin": TorchDynamoPlugin(backend=DynamoBackend.EAGER)} if order == "by accelerate" else {}
    accelerator = Accelerator(mixed_precision="bf16", **by_plugin)
    model: Any = TinyModel()
    if order == "before":
        model = torch.compile(model, backend="eager")
    elif order == "in place":
        model.compile(backend="eager")
    model = accelerator.prepare(model)
    if order == "after":
        model = torch.compile(model, backend="eager")
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(5))
    for dtype in (BFLOAT16, FLOAT32, FLOAT16, BFLOAT16):
        switch_precision(accelerator, dtype)
        with torch.autocast("cpu", dtype=getattr(torch, dtype.name), enabled=dtype is not FLOAT32):
            expected = TinyModel()(x)
        assert torch.equal(model(x), expected)


def test_regional_compilation_needs_a_restart() -> None:
    """Where accelerate compiles the blocks of a copy of the model, nothing is switched."""
    plugin = TorchDynamoPlugin(backend=DynamoBackend.EAGER, use_regional_compilation=True)
    accelerator, _, _ = prepared(BFLOAT16, dynamo_plugin=plugin)
    with pytest.raises(NeedsRestart, match="regional compilation"):
        switch_precision(accelerator, FLOAT32)
    assert precision_of(accelerator) is BFLOAT16


@pytest.mark.parametrize(
    ("name", "engine"),
    [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP1"), ("MEGATRON_LM", "Megatron-LM"), ("XLA", "XLA")],
)
def test_engines_need_a_restart(name: str, engine: str) -> None:
    """An engine that has the precision built in is named, and nothing is changed."""
    accelerator, model, _ = prepared(BFLOAT16)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    accelerator.state.distributed_type = getattr(type(accelerator.distributed_type), name)
    with pytest.raises(NeedsRestart, match=f"{engine}.*mixed_precision='no'"):
        switch_precision(accelerator, FLOAT32)
    assert "_original_forward" in model.__dict__


def test_wrapped_from_outside_is_refused() -> None:
    """A wrapper that somebody has put around accelerate's is not thrown away: the model goes on as it was."""
    accelerator, model, _ = prepared(BFLOAT16)
    inner = model.forward
    model.forward = lambda x: inner(x)
    with pytest.raises(NotSwitchableError, match="forward of TinyModel"):
        switch_precision(accelerator, FLOAT32)
    assert precision_of(accelerator) is BFLOAT16
    model(torch.ones(1, 8))
    assert model.dtypes == [torch.bfloat16]


def test_float16_parameters_are_refused() -> None:
    """Parameters that are trained in float16 have no float32 masters for a scaler: the first one is named."""
    accelerator = Accelerator(mixed_precision="bf16")
    accelerator.prepare(TinyModel().half())
    with pytest.raises(NotSwitchableError, match=r"up\.weight .*float32"):
        switch_precision(accelerator, FLOAT16)
    switch_precision(accelerator, FLOAT32)


@pytest.mark.parametrize("name", ["native_amp", "scaler_handler", "_models"])
def test_what_accelerate_lacks_is_named(name: str) -> None:
    """An accelerate without an attribute that has to be rebuilt is refused by the name of the attribute."""
    accelerator, model, _ = prepared(BFLOAT16)
    delattr(accelerator, name)
    with pytest.raises(NotSwitchableError, match=rf"accelerate \d.* has no Accelerator\.{name}"):
        switch_precision(accelerator, FLOAT32)
    assert accelerator.mixed_precision == "bf16"
    assert "_original_forward" in model.__dict__


@pytest.mark.parametrize("backend", [DynamoBackend.NO, DynamoBackend.EAGER], ids=["plain", "compiled"])
def test_model_that_the_accelerator_forgot(backend: DynamoBackend) -> None:
    """After `free_memory` a guard still changes what its model computes in."""
    accelerator, model, optimizer = prepared(BFLOAT16, dynamo_plugin=TorchDynamoPlugin(backend=backend))
    inner = getattr(model, "_orig_mod", model)
    accelerator.free_memory()
    accelerator.prepare(optimizer)
    guard = PrecisionGuard(accelerator, model)
    assert accelerator._models == [inner]
    guard.loop.switch(FLOAT32)
    inner(torch.ones(1, 8))
    assert inner.dtypes == [torch.float32]


def test_compiled_model_that_is_prepared_again() -> None:
    """It is switched as one that was prepared once."""
    plugin = TorchDynamoPlugin(backend=DynamoBackend.EAGER)
    accelerator, model, _ = prepared(BFLOAT16, dynamo_plugin=plugin)
    accelerator.free_memory()
    accelerator.prepare(model)
    switch_precision(accelerator, FLOAT32)
    model._orig_mod(torch.ones(1, 8))
    assert model._orig_mod.dtypes == [torch.float32]
