"""Several threads with one guarded model."""

from __future__ import annotations

import linecache
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from guarding.generators import DOWN, tiny
from guarding.oracle import Switch

from safe_dtype import BFLOAT16, FLOAT32, guard, report
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
    assert put.fired
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
            if calls.count == 3:
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
    first = lock.begin_step()
    waiting = threading.Event()

    def change() -> None:
        waiting.set()
        with lock.change():
            order.append("change")

    def step() -> None:
        turn = lock.begin_step()
        order.append("later step")
        lock.end_step(turn)

    changer = threading.Thread(target=change)
    changer.start()
    waiting.wait(10)
    time.sleep(0.05)  # it waits inside by now
    stepper = threading.Thread(target=step)
    stepper.start()
    time.sleep(0.05)
    assert order == []
    order.append("first step ends")
    lock.end_step(first)
    for thread in (changer, stepper):
        thread.join(10)
    assert order == ["first step ends", "change", "later step"]


def test_steps_run_together() -> None:
    """Steps do not wait for each other, and go on where a change has failed."""
    lock = ModelLock()
    turns = [lock.begin_step(), lock.begin_step()]
    for turn in turns:
        lock.end_step(turn)
    with pytest.raises(ZeroDivisionError), lock.change():
        raise ZeroDivisionError
    lock.end_step(lock.begin_step())


def in_thread(work: Callable[[], object], *, seconds: float = 10) -> bool:
    """Run `work` in another thread, and return whether it ended in time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def step_of(lock: ModelLock) -> None:
    """Run a step."""
    lock.end_step(lock.begin_step())


def change_of(lock: ModelLock) -> None:
    """Make a change."""
    with lock.change():
        pass


class Elsewhere:
    """Another thread that is in the middle of something, until it is let go."""

    def __init__(self, work: Callable[[Callable[[], object]], object]) -> None:
        self._begun, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=work, args=(self._wait,), daemon=True)
        self._thread.start()
        assert self._begun.wait(30)

    def _wait(self) -> None:
        self._begun.set()
        self._go_on.wait(60)

    def ends(self) -> None:
        """Let it go on to its end."""
        self._go_on.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def long_step(lock: ModelLock) -> Elsewhere:
    """Begin a step in another thread."""

    def work(wait: Callable[[], object]) -> None:
        turn = lock.begin_step()
        wait()
        lock.end_step(turn)

    return Elsewhere(work)


def long_change(lock: ModelLock) -> Elsewhere:
    """Begin a change in another thread."""

    def work(wait: Callable[[], object]) -> None:
        with lock.change():
            wait()

    return Elsewhere(work)


@contextmanager
def interrupted_after(seconds: float, error: type[BaseException]) -> Iterator[None]:
    """Have a signal raise `error` in the block, as Ctrl-C and a limit of time do."""

    def interrupt(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(error):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="signals of this kind are Unix")
@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize(
    ("wait_for", "work"), [(long_step, change_of), (long_change, change_of), (long_change, step_of)]
)
def test_a_wait_that_is_interrupted(
    error: type[BaseException], wait_for: Callable[[ModelLock], Elsewhere], work: Callable[[ModelLock], None]
) -> None:
    """Who stops waiting leaves the lock as it was: others step and change at once when the other thread is done."""
    lock = ModelLock()
    other = wait_for(lock)
    with interrupted_after(0.2, error):
        work(lock)
    other.ends()
    assert in_thread(lambda: step_of(lock))
    assert in_thread(lambda: change_of(lock))


def test_a_step_that_was_lost() -> None:
    """A step whose end an exception skipped does not count once nobody has its turn."""
    lock = ModelLock()
    turn = lock.begin_step()
    assert not in_thread(lambda: change_of(lock), seconds=0.3)
    del turn
    assert in_thread(lambda: change_of(lock))
    assert in_thread(lambda: step_of(lock))


def test_a_thread_inside_its_own() -> None:
    """A thread steps and changes inside its own steps and changes, whoever waits for it."""
    lock = ModelLock()

    def nested() -> None:
        turn = lock.begin_step()
        changer = threading.Thread(target=change_of, args=(lock,), daemon=True)
        changer.start()
        time.sleep(0.1)  # it waits by now
        step_of(lock)
        with lock.change(), lock.change():
            step_of(lock)
        lock.end_step(turn)
        changer.join(10)

    assert in_thread(nested)
    assert in_thread(lambda: change_of(lock))


def test_two_steps_that_both_change() -> None:
    """Two threads that want a change inside of their steps do not wait for each other for ever."""
    lock, together = ModelLock(), threading.Barrier(2)

    def work() -> None:
        turn = lock.begin_step()
        together.wait(10)
        with lock.change():
            pass
        lock.end_step(turn)

    other = threading.Thread(target=work, daemon=True)
    other.start()
    assert in_thread(work)
    other.join(10)
    assert not other.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are Unix")
@pytest.mark.parametrize("begin", [long_step, long_change])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads is what this is about
def test_a_fork(begin: Callable[[ModelLock], Elsewhere]) -> None:
    """A process forked in the middle of another thread's step, or change, steps and changes; so does its parent."""
    lock = ModelLock()
    turn = lock.begin_step() if begin is long_step else None
    other = begin(lock)
    child = os.fork()
    if not child:  # only this thread is here
        if turn is not None:
            lock.end_step(turn)
        change_of(lock)
        step_of(lock)
        os._exit(3)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 3
    assert not in_thread(lambda: change_of(lock), seconds=0.2)
    if turn is not None:
        lock.end_step(turn)
    other.ends()
    assert in_thread(lambda: change_of(lock))


def test_many_threads() -> None:
    """Steps of many threads never see a change in its middle, and all of them come to their end."""
    lock, halves, torn = ModelLock(), [0, 0], []

    def work(number: int) -> None:
        for turn_number in range(150):
            if (turn_number + number) % 10 == 0:
                with lock.change():
                    halves[0] += 1
                    time.sleep(0)
                    halves[1] += 1
            turn = lock.begin_step()
            if halves[0] != halves[1]:
                torn.append(list(halves))
            lock.end_step(turn)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not torn
    assert halves == [180, 180]


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="signals of this kind are Unix")
def test_a_request_that_ran_out_of_time() -> None:
    """A request that waits to change a guarded model, and is interrupted, leaves the model to the others."""
    net = guard(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).bfloat16().eval())
    numbers = torch.ones(1, 4, dtype=BF16)
    own = threading.local()

    def work(wait: Callable[[], object]) -> None:
        own.wait = wait
        net(numbers)

    net[0].register_forward_pre_hook(lambda *_: own.wait() if hasattr(own, "wait") else None)
    other = Elsewhere(work)
    with interrupted_after(0.3, TimeoutError), fault(net, "1", "cublas"):
        net(numbers)
    other.ends()
    assert report(net).dtype is BFLOAT16
    found: list[Any] = []
    assert in_thread(lambda: found.append(net(numbers)))
    assert torch.equal(found[0], net(numbers))


def lines_of_the_lock(at: int) -> Callable[..., Any]:
    """Return a trace that raises at line number `at` of those of the lock's that run, as a signal would.

    Not at a `with`, to which a trace comes once more at its end: no signal comes before it has let go.
    """
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(("model_lock.py", "events.py")):
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.strip().startswith("with "):
            count += 1
            if count == at:
                raise KeyboardInterrupt
        return trace

    return trace


def test_interrupted_at_any_line() -> None:
    """Wherever a step or a change is cut off, and though its exception is kept, other threads step and change."""
    kept = []
    for at in range(1, 60):
        net = guard(torch.nn.Sequential(torch.nn.Linear(4, 4)).bfloat16().eval())
        numbers = torch.ones(1, 4, dtype=BF16)
        with torch.no_grad(), fault(net, "0", "cublas"):
            before = sys.gettrace()
            sys.settrace(lines_of_the_lock(at))
            try:
                net(numbers)
            except KeyboardInterrupt as exc:
                kept.append(exc)
            finally:
                sys.settrace(before)
            assert in_thread(lambda net=net, numbers=numbers: net(numbers))  # type: ignore[misc]
    assert len(kept) > 20
