"""One model is loaded at a time, except where threads are ranks that wait for each other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_models import TINY
from transformers import AutoModelForCausalLM

from safe_dtype.models.load_lock import one_at_a_time


def test_other_threads_wait() -> None:
    """A second thread comes in when the first has left."""
    inside = threading.Event()

    def enter() -> None:
        with one_at_a_time():
            inside.set()

    with one_at_a_time():
        thread = threading.Thread(target=enter)
        thread.start()
        assert not inside.wait(0.1)
    thread.join(60)
    assert inside.is_set()


def test_a_model_in_a_model() -> None:
    """The thread that loads may load another on the way."""
    with one_at_a_time(), one_at_a_time():
        pass


def test_threads_that_load(tmp_path: Path) -> None:
    """Loaded by several threads, every model is tied, and the default dtype is what it was."""
    folder = TINY["qwen3"].save(tmp_path, torch.bfloat16)

    def load(_: int) -> bool:
        with one_at_a_time():
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return model.lm_head.weight is model.model.embed_tokens.weight

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(load, range(8)))
    assert torch.get_default_dtype() == torch.float32


def test_ranks_do_not_wait(tmp_path: Path) -> None:
    """In a process group two threads are in at once: each waits for the other before it leaves."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        meeting = threading.Barrier(2, timeout=30)

        def meet(_: int) -> int:
            with one_at_a_time():
                return meeting.wait()

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(meet, range(2))) == [0, 1]
    finally:
        dist.destroy_process_group()
