"""Continuous batches: requests that fail go on from the tokens they had."""

from __future__ import annotations

import torch
import transformers
from guarding.generators import DOWN, tiny

from safe_dtype import FLOAT32, guard, report
from safe_dtype.guarding import FailureKind
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


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
