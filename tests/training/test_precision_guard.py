"""A guarded window: what fails in it runs again, and the run is the one that had switched there."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from ranks.processes import free_port, run_ranks
from torch import nn
from torch.distributed import TCPStore
from training.loops import BF16, FP16, FP32, Fault, Run, run

from safe_dtype import BFLOAT16, FLOAT16, FLOAT32, NoDtypeLeft
from safe_dtype.errors import NeedsRestart
from safe_dtype.ranks import Vote
from safe_dtype.ranks.failed_dtypes import write_verdict
from safe_dtype.training import PrecisionGuard, TorchLoop
from safe_dtype.training.judge_error import reason_in

NO_KERNEL = "\"addmm_impl_cpu_\" not implemented for 'BFloat16'"
EITHER = pytest.mark.parametrize("uses_accelerate", [False, True], ids=["torch", "accelerate"])


@EITHER
@pytest.mark.parametrize("kind", ["raise", "before", "backward", "nan", "inf"])
def test_the_run_is_the_one_that_switched_there(kind: str, uses_accelerate: bool) -> None:
    """Weights, statistics, optimizer, losses, rates and random numbers: nothing differs."""
    failed = run(Run(fault=Fault(kind), uses_accelerate=uses_accelerate))
    switched = run(Run(switch=(3, FLOAT16), uses_accelerate=uses_accelerate))
    assert failed.differences(switched) == []
    (event,) = failed.events
    assert (event.before, event.after, event.step) == (BFLOAT16, FLOAT16, 3)


@EITHER
@pytest.mark.parametrize("micro", [0, 1, 2])
def test_a_window_runs_again_from_its_first_micro_batch(micro: int, uses_accelerate: bool) -> None:
    """NaN in any of three micro-batches, with a last window of two."""
    common = {"micro": 3, "batches": 14, "uses_accelerate": uses_accelerate}
    failed = run(Run(fault=Fault("nan", 2, micro=micro), **common))
    switched = run(Run(switch=(2, FLOAT16), **common))
    assert failed.differences(switched) == []
    assert failed.calls == switched.calls + 3


@EITHER
def test_two_steps_down(uses_accelerate: bool) -> None:
    """bfloat16 and float16 both fail at a step: float32."""
    failed = run(Run(fault=Fault("raise", 1, (BF16, FP16)), uses_accelerate=uses_accelerate))
    assert failed.differences(run(Run(switch=(1, FLOAT32), uses_accelerate=uses_accelerate))) == []
    assert [event.after for event in failed.events] == [FLOAT16, FLOAT32]


@EITHER
def test_overflow_halves_the_scale_and_no_batch_is_lost(uses_accelerate: bool) -> None:
    """float16's gradients overflow with the first scales: the run is that which began with a smaller one."""
    common = {"first": FLOAT16, "uses_accelerate": uses_accelerate, "factor": 300.0}
    overflowed = run(Run(init_scale=2.0**24, **common))
    assert overflowed.differences(run(Run(init_scale=2.0**4, **common))) == []
    assert {event.after for event in overflowed.events} == {FLOAT16}
    assert len(overflowed.events) > 3


@EITHER
def test_nan_in_every_dtype_is_an_error_that_says_so(uses_accelerate: bool) -> None:
    """With what was tried; an error of another kind comes out at once."""
    with pytest.raises(
        NoDtypeLeft, match=r"in bfloat16: the loss is not finite\n.*in float16.*\n.*in float32"
    ) as raised:
        run(Run(fault=Fault("nan", 1, (BF16, FP16, FP32)), uses_accelerate=uses_accelerate))
    assert raised.value.dtype == "float32"
    assert raised.value.optimizer_step == 1
    text = str(raised.value)
    assert "not finite at optimizer step 1" in text
    assert all(word in text.partition("Next: ")[2] for word in ("labels", "learning rate", "max_grad_norm"))
    assert "device_map" not in text
    with pytest.raises(KeyError, match="labels"):
        run(Run(fault=Fault("foreign"), uses_accelerate=uses_accelerate))


@pytest.mark.parametrize("clips", [False, True])
def test_a_loop_that_scales_no_loss(clips: bool) -> None:
    """With `loss.backward()` there is no float16: the step is made in float32."""
    layer, rows = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    before = layer.weight.detach().clone()
    layer.register_forward_hook(lambda _module, _inputs, out: out * float("nan") if out.dtype is BF16 else None)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    loop = TorchLoop(layer, optimizer, "bfloat16")
    guard = PrecisionGuard(loop)
    for attempt in guard.attempts():
        with attempt:
            with loop.autocast():
                loss = layer(rows).sum()
            loss.backward()
            if clips:
                loop.clip_grad_norm_(layer.weight, 10.0)
            optimizer.step()
    assert [event.after for event in guard.events] == [FLOAT16, FLOAT32]
    assert torch.equal(layer.weight, before - 0.5)


@pytest.mark.parametrize("is_left", [False, True], ids=["none before", "one of the window before"])
def test_passes_that_nobody_is_told_of(is_left: bool) -> None:
    """What `loss.backward()` has added before an exception is forgotten: the window runs again without it."""
    layer, rows = nn.Linear(2, 1, bias=False), torch.ones(1, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    if is_left:
        layer.weight.grad = torch.ones(1, 2)
    loop = TorchLoop(layer, optimizer, "bfloat16")
    before = layer.weight.detach().clone()
    guard = PrecisionGuard(loop)
    for attempt in guard.attempts():
        with attempt:
            if is_left:
                optimizer.zero_grad()
            layer(rows).sum().backward()
            if loop.dtype != FLOAT32:
                raise RuntimeError(NO_KERNEL)
            optimizer.step()
    assert torch.equal(layer.weight, before - 0.5)


def test_a_step_that_returns() -> None:
    """A function that returns out of its attempt has made a window all the same."""
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    loop = TorchLoop(layer, optimizer, "bfloat16")
    guard = PrecisionGuard(loop)

    def step() -> float:
        for attempt in guard.attempts():
            with attempt:
                loss = layer(torch.ones(1, 2)).sum()
                loop.backward(loss)
                optimizer.step()
                return loss.item()
        raise AssertionError

    step()
    step()
    assert guard.windows_done == 2


def test_engines_that_step_themselves_are_refused() -> None:
    """A guard could hold nothing back there: it says so, with the engine's name, before anything runs."""
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(nn.Linear(2, 2))
    accelerator.state.distributed_type = type(accelerator.distributed_type).DEEPSPEED
    with pytest.raises(NeedsRestart, match=r"DeepSpeed.*Next: train it without the guard; or by DDP or FSDP2"):
        PrecisionGuard(accelerator, model)
    AcceleratorState._reset_state(True)


def test_begins_below_what_failed_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ended an earlier attempt is not tried again, unless the ladder has nothing else."""
    monkeypatch.setenv("SAFE_DTYPE_CACHE", str(tmp_path))

    def fail(*_: object) -> None:
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer (bf16).")

    failing, later = nn.Linear(2, 2), nn.Linear(2, 2)
    failing.register_forward_hook(fail)
    with pytest.raises(RuntimeError) as caught:
        failing(torch.ones(1, 2))
    write_verdict(caught.value)
    optimizer = torch.optim.SGD(later.parameters())
    assert PrecisionGuard(TorchLoop(later, optimizer, BFLOAT16)).dtype == FLOAT16
    assert PrecisionGuard(TorchLoop(later, optimizer, BFLOAT16), ladder=(BFLOAT16,)).dtype == BFLOAT16
    assert PrecisionGuard(TorchLoop(nn.Linear(2, 3), optimizer, BFLOAT16)).dtype == BFLOAT16


def test_the_error_of_a_rank_that_has_ended_since() -> None:
    """What a rank has written down may be gone with the store of rank 0: the others still end with an error that says so."""
    server = TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    store = TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=5))
    store.set("key", "ValueError: labels are missing")
    assert reason_in(store, "key", Vote.FOREIGN) == "ValueError: labels are missing"
    del server
    assert "has ended" in reason_in(store, "key", Vote.FOREIGN)
    with pytest.raises(RuntimeError):
        reason_in(store, "key", Vote.FALL_BACK)


class _AskedLate:
    """A store that is asked when rank 0, which holds it, has ended."""

    def __init__(self, store: Any) -> None:
        self.set, self._store = store.set, store

    def get(self, key: str) -> bytes:
        """Return what a rank has written there."""
        while not self._store.check(["the end"]):  # raises from then on
            pass
        return bytes(self._store.get(key))


def _raises_in_a_window() -> str:
    rank = torch.distributed.get_rank()
    model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = PrecisionGuard(TorchLoop(model, optimizer))
    if rank:
        assert guard._world is not None
        guard._world = replace(guard._world, store=_AskedLate(guard._world.store))
    try:
        for attempt in guard.attempts():
            with attempt:
                raise ValueError(f"labels are missing on rank {rank}")
    except (RuntimeError, ValueError) as exc:
        raise SystemExit(0 if str(exc) == f"labels are missing on rank {rank}" else 1) from None
    return "nothing was raised"


@pytest.mark.slow
def test_an_error_of_all_ranks_is_on_each_its_own() -> None:
    """Though the first rank that ends takes the store with it."""
    assert run_ranks(_raises_in_a_window, 2) == [None, None]
