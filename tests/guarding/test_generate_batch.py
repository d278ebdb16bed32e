"""Continuous batches: requests that fail go on from the tokens they had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny

from safe_dtype import FLOAT32, guard, report
from safe_dtype.errors import StrictModeError
from safe_dtype.guarding import FailureKind
from safe_dtype.guarding.state import guard_of
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

pytestmark = pytest.mark.needs("transformers>=5.17")  # 5.16 drops requests that fail

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
    assert put.fired > 1  # in the batch, and in trials of the module alone
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


PROMPTS = [[5, 6, 7], [9, 10, 11, 12], [3, 4]]
CONFIG = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)


def small() -> Any:
    """Return a pool that does not take most of the memory."""
    return transformers.ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=64)


def tokens_of(model: Any, prompts: list[list[int]] = PROMPTS) -> list[list[int]]:
    """Return what a batch gives."""
    done = model.generate_batch(prompts, CONFIG, continuous_batching_config=small())
    return [done[f"req_{index}"].generated_tokens for index in range(len(prompts))]


class Fails:
    """A hook that fails from the fifth call on, in one dtype or in all."""

    def __init__(self, text: str | None, dtypes: set[torch.dtype]) -> None:
        self.text, self.dtypes, self.calls = text, dtypes, 0

    def __call__(self, module: Any, _args: Any, output: Any) -> Any:
        """Raise, or give NaN."""
        self.calls += 1
        if self.calls <= 4 or module.weight.dtype not in self.dtypes:
            return None
        if self.text is None:
            return torch.full_like(output, torch.nan)
        raise RuntimeError(self.text)


@pytest.mark.parametrize("text", ["tile 17 has no configuration", None], ids=["unknown-text", "nan"])
def test_by_experiment(text: str | None) -> None:
    """A text that nobody knows is put to the test, as in a step; so is NaN, from which token 0 would be drawn."""
    model, wide = guard(tiny()), tiny()
    recast(wide, {BF16}, FP32)
    model.get_submodule(DOWN).register_forward_hook(Fails(text, {BF16}))
    found = tokens_of(model)
    (event,) = report(model).events
    assert (event.after, event.module) == (FLOAT32, DOWN if text else None)
    assert len(report(model).learned) == (1 if text else 0)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        rest = wide.generate(torch.tensor([[*prompt, *tokens[:4]]]), max_new_tokens=4, do_sample=False)
        assert rest[0, len(prompt) + 4 :].tolist() == tokens[4:]
    assert guard_of(model).batch_errors == {}


def test_no_matter_of_dtypes() -> None:
    """What no dtype cures ends the requests with its text, and the model is as it was."""
    model = guard(tiny())
    model.get_submodule(DOWN).register_forward_hook(Fails("tile 17 has no configuration", {BF16, FP32}))
    done = model.generate_batch(PROMPTS, CONFIG, continuous_batching_config=small())
    assert {request.error for request in done.values()} == {"tile 17 has no configuration"}
    assert (model.dtype, report(model).events) == (BF16, ())


@pytest.mark.slow
def test_values_of_its_own() -> None:
    """NaN that float32 gives as well is handed on: the batch ends as in plain, in the model's dtype, and is not asked again."""
    model, plain = guard(tiny()), tiny()
    fails, plainly = Fails(None, {BF16, FP32}), Fails(None, {BF16, FP32})
    model.get_submodule(DOWN).register_forward_hook(fails)
    plain.get_submodule(DOWN).register_forward_hook(plainly)
    assert tokens_of(model) == tokens_of(plain)
    assert (model.dtype, report(model).events) == (BF16, ())
    before = fails.calls
    tokens_of(model)
    plainly.calls = 4
    again = plainly.calls
    tokens_of(plain)
    assert fails.calls - before == plainly.calls - again


@pytest.mark.slow
def test_strict() -> None:
    """Strict mode changes nothing: an exception that another dtype cures is named, NaN goes on as in plain."""
    model = guard(tiny(), policy="strict")
    model.get_submodule(DOWN).register_forward_hook(Fails("tile 17 has no configuration", {BF16}))
    with pytest.raises(StrictModeError, match="tile 17"):
        tokens_of(model)
    assert (model.dtype, len(report(model).refusals)) == (BF16, 1)
    model, plain = guard(tiny(), policy="strict"), tiny()
    for one in (model, plain):
        one.get_submodule(DOWN).register_forward_hook(Fails(None, {BF16}))
    assert tokens_of(model) == tokens_of(plain)
