"""Several threads with one guarded model, and batches that go on beside each other."""

from __future__ import annotations

import threading
from typing import Any

import torch
import transformers
from guarding.generators import DOWN, tiny
from guarding.oracle import Switch

from safe_dtype import FLOAT32, guard, report
from safe_dtype.guarding import FailureKind
from safe_dtype.models.recast import recast
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


def test_continuous_batching() -> None:
    """Requests of a continuous batch go on from the tokens they had, in a new pool."""
    prompts = [[5, 6, 7], [9, 10, 11, 12], [3, 4]]
    config = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # By itself the pool takes most of the memory.
    small = transformers.ContinuousBatchingConfig(num_blocks=64, block_size=32, max_batch_tokens=64)
    model, plain, wide = guard(tiny()), tiny(), tiny()
    recast(wide, {BF16}, FP32)
    with fault(model, DOWN, "cublas", call=4) as put:
        found = model.generate_batch(prompts, config, continuous_batching_config=small)
    assert put.fired == 1
    (event,) = report(model).events
    assert (event.kind, event.after) == (FailureKind.OP_UNSUPPORTED, FLOAT32)
    begun = plain.generate_batch(prompts, config, continuous_batching_config=small)
    for index, prompt in enumerate(prompts):
        one = found[f"req_{index}"]
        assert one.error is None
        assert one.prompt_ids == prompt
        had = one.generated_tokens[: event.step]
        assert had == begun[f"req_{index}"].generated_tokens[: event.step]
        rest = wide.generate(torch.tensor([[*prompt, *had]]), max_new_tokens=8 - event.step, do_sample=False)
        assert rest[0, len(prompt) :].tolist() == one.generated_tokens
