"""A manager of continuous batches, as servers have it, goes on after a failure: no request ends, later ones are answered."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import transformers
from guarding.generators import DOWN, tiny

from safe_dtype import FLOAT32, guard, report
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

pytestmark = pytest.mark.needs("transformers>=5.17")  # 5.16 drops requests that fail

PROMPTS = [[5, 6, 7], [9, 10, 11, 12], [3, 4], [8, 9]]
CONFIG = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
PATIENCE = 120  # seconds, on a machine with other things to do


class Managed:
    """A manager of `model` that is left open, and what came out of it."""

    def __init__(self, model: Any) -> None:
        # By itself the pool takes most of the memory.
        pool = transformers.ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=64)
        self.context = model.continuous_batching_context_manager(CONFIG, continuous_batching_config=pool)

    def __enter__(self) -> Managed:
        self.manager = self.context.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.context.__exit__(*exc)

    def answers(self, *, streaming: bool = False) -> list[list[Any]]:
        """Return the outputs that each of four requests gives, in their order."""
        names = self.manager.add_requests(PROMPTS, max_new_tokens=8, streaming=streaming)
        outputs: dict[str, list[Any]] = {name: [] for name in names}
        end = time.monotonic() + PATIENCE
        while not all(one and one[-1].is_finished() for one in outputs.values()) and time.monotonic() < end:
            output = self.manager.get_result(timeout=0.1)
            if output is not None:
                outputs[output.request_id].append(output)
            assert self.manager.is_running()
        return list(outputs.values())


def tokens_of(outputs: list[list[Any]]) -> list[list[int]]:
    """Return what each request had generated in the end."""
    assert [one[-1].error for one in outputs] == [None] * len(PROMPTS)
    return [one[-1].generated_tokens for one in outputs]


@pytest.mark.parametrize("kind", ["nan", "not_implemented"])
def test_goes_on(kind: str) -> None:
    """Prompt and tokens so far are the prompt of the rest, which is that of float32; the manager serves on."""
    model, wide = guard(tiny()), tiny()
    recast(wide, {torch.bfloat16}, torch.float32)
    with Managed(model) as ours:
        with fault(model, DOWN, kind, call=3):
            outputs = ours.answers()
        later = tokens_of(ours.answers())
    (event,) = report(model).events
    assert event.after == FLOAT32
    for prompt, (output,), tokens in zip(PROMPTS, outputs, tokens_of(outputs), strict=True):
        assert output.prompt_ids == prompt
        rest = wide.generate(torch.tensor([[*prompt, *tokens[:3]]]), max_new_tokens=5, do_sample=False)
        assert rest[0, len(prompt) + 3 :].tolist() == tokens[3:]
    with Managed(wide) as plain:
        assert later == tokens_of(plain.answers())


@pytest.mark.slow
def test_streamed() -> None:
    """Each output of a streamed request adds tokens to those before, across the failure too."""
    model = guard(tiny())
    with Managed(model) as ours, fault(model, DOWN, "nan", call=3):
        outputs = ours.answers(streaming=True)
    for of_request, tokens in zip(outputs, tokens_of(outputs), strict=True):
        assert [one.generated_tokens for one in of_request] == [tokens[: count + 1] for count in range(8)]


def test_healthy() -> None:
    """What a manager of a guarded model gives is what it gives without the guard, bit for bit."""
    with Managed(guard(tiny())) as ours, Managed(tiny()) as plain:
        assert tokens_of(ours.answers()) == tokens_of(plain.answers())


@pytest.mark.slow
def test_waiting_and_split() -> None:
    """Requests that had no turn yet, or half of one, are answered as without a failure: by the prompt that they brought."""
    model, wide = guard(tiny()), tiny()
    recast(wide, {torch.bfloat16}, torch.float32)
    prompts = [[*range(3, 60)], [5, 6, 7], [*range(8, 58)], [9, 10]]
    pool = transformers.ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=32)
    answers = []
    for one in (model, wide):
        manager_of_one = one.continuous_batching_context_manager(CONFIG, continuous_batching_config=pool)
        with manager_of_one as manager, fault(model, DOWN, "nan", call=1):
            names = manager.add_requests(prompts, max_new_tokens=8)
            done: dict[str, Any] = {}
            end = time.monotonic() + PATIENCE
            while len(done) < len(names) and time.monotonic() < end:
                output = manager.get_result(timeout=0.1)
                if output is not None:
                    done[output.request_id] = output
        answers.append([(done[name].prompt_ids, done[name].generated_tokens, done[name].error) for name in names])
    assert report(model).events
    assert answers[0] == answers[1]
