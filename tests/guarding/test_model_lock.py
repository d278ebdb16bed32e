"""Several threads with one guarded model."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from guarding.generators import DOWN, tiny
from guarding.oracle import Switch

from safe_dtype import FLOAT32, guard, report
from safe_dtype.guarding.model_lock import ModelLock
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_one_thread_changes_the_other_waits() -> None:
    """Two threads generate with one model when it fails: it is changed once, and both go on."""
    model = guard(tiny())
    wanted = tiny()
    Switch(wanted, 3, FLOAT32)
    truth = wanted.generate(IDS, max_new_tokens=12, do_sample=False)
    found: dict[int, Any] = {}

    def generate(index: int) -> None:
        found[index] = model.generate(IDS, max_new_tokens=12, do_sample=False)

    with fault(model, DOWN, "cublas", call=6) as put:
        threads = [threading.Thread(target=generate, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert put.fired in (1, 2)
    assert len(report(model).events) == 1
    assert set(found) == {0, 1}
    assert all(one.shape == truth.shape for one in found.values())


def test_two_threads_at_the_same_step() -> None:
    """Both fail at the same time, in the middle of the same step: the second finds the model changed."""
    model = guard(tiny())
    wanted = tiny()
    Switch(wanted, 2, FLOAT32)
    truth = wanted.generate(IDS, max_new_tokens=6, do_sample=False)
    together = threading.Barrier(2)
    calls = threading.local()

    def fail(module: Any, args: Any) -> None:
        calls.count = getattr(calls, "count", 0) + 1
        if module.weight.dtype == BF16 and calls.count > 2:
            together.wait(30)
            raise RuntimeError("\"addmm_impl_cpu_\" not implemented for 'BFloat16'")

    model.get_submodule(DOWN).register_forward_pre_hook(fail)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.generate(IDS, max_new_tokens=6, do_sample=False)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert all(torch.equal(one, truth) for one in found)
    assert len(report(model).events) == 1


def test_a_change_waits_for_steps() -> None:
    """A change begins when the last running step has ended, and steps that come later wait for its end."""
    lock, order = ModelLock(), []
    lock.begin_step()
    waiting = threading.Event()

    def change() -> None:
        waiting.set()
        with lock.change():
            order.append("change")

    def step() -> None:
        lock.begin_step()
        order.append("later step")
        lock.end_step()

    changer = threading.Thread(target=change)
    changer.start()
    waiting.wait(10)
    time.sleep(0.05)  # it waits inside by now
    stepper = threading.Thread(target=step)
    stepper.start()
    time.sleep(0.05)
    assert order == []
    order.append("first step ends")
    lock.end_step()
    for thread in (changer, stepper):
        thread.join(10)
    assert order == ["first step ends", "change", "later step"]


def test_steps_run_together() -> None:
    """Steps do not wait for each other, and go on where a change has failed."""
    lock = ModelLock()
    lock.begin_step()
    lock.begin_step()
    lock.end_step()
    lock.end_step()
    with pytest.raises(ZeroDivisionError), lock.change():
        raise ZeroDivisionError
    lock.begin_step()
    lock.end_step()
