"""Wrapped methods, and threads, finalizers and the end of the process."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from models.speakers import User, classes, ours, own

from safe_dtype.models.needed import changing
from safe_dtype.models.wrapped_methods import unwrap_methods, wrap_method


def test_threads() -> None:
    """Threads that wrap, call, and let go or die end with the class as it was, and every call is right."""
    base, _ = classes()
    before, start = own(base), threading.Barrier(4)

    def work(number: int) -> set[str]:
        heard = set()
        start.wait()
        for turn in range(200):
            user = User()
            wrap_method(base, "say", ours, user)
            heard.add(base().say("a"))
            if (number + turn) % 2:
                unwrap_methods(user)
        return heard

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(work, range(4))) == {"a!"}
    gc.collect()
    assert own(base) == before


def test_death_during_a_change() -> None:
    """Where a user dies while another thread makes a change nobody waits; the wrapper goes when that is made."""
    base, _ = classes()
    before, user = own(base), User()
    wrap_method(base, "say", ours, user)
    inside, go_on = threading.Event(), threading.Event()

    def change() -> None:
        with changing():
            inside.set()
            assert go_on.wait(60)

    thread = threading.Thread(target=change)
    thread.start()
    assert inside.wait(60)
    del user
    assert base().say("a") == "a!"
    go_on.set()
    thread.join()
    assert own(base) == before


def test_finalizer_that_lets_go() -> None:
    """A finalizer that makes a change of its own may run in the middle of another."""
    base, _ = classes()
    before, user, other = own(base), User(), User()

    class Doomed:
        def __del__(self) -> None:
            unwrap_methods(user)

    wrap_method(base, "say", ours, user)
    wrap_method(base, "named", ours, other)
    doomed = Doomed()
    with changing():
        del doomed
    assert base.__dict__["say"] is before["say"]
    unwrap_methods(other)
    assert own(base) == before


@pytest.mark.slow
def test_end_of_the_process() -> None:
    """A process that ends with models guarded and patched ends without a word."""
    program = (
        "import torch, safe_dtype\nsafe_dtype.patch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)\n"
        "model = safe_dtype.guard(LlamaForCausalLM(LlamaConfig(**sizes)))\n"
        "model.itself = [model]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
