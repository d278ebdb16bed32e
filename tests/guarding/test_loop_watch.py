"""What a loop that is begun again learns of its guard; whole generations are in tests/accelerator."""

from __future__ import annotations

import pytest
import torch
from guarding.generators import DOWN, ONE_ROW, generator
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from safe_dtype import guard
from safe_dtype.guarding.deferred.judged_later import UnreadStep
from safe_dtype.guarding.deferred.loop_watch import LoopStep, LoopWatch
from safe_dtype.guarding.deferred.reasons import SamplingLoop
from safe_dtype.guarding.state import CALL, guard_of, here
from safe_dtype.guarding.step_snapshot import StepSnapshot
from safe_dtype.testing import fault


@pytest.mark.parametrize("is_cured", [False, True])
def test_cured_by_another_thread(is_cured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model was cured after a step had failed, be it by another thread, what follows is judged later again."""
    model = guard(generator("qwen3", torch.bfloat16))
    own = guard_of(model)
    assert own is not None
    tokens = ONE_ROW["input_ids"]
    watch = LoopWatch(
        own,
        SamplingLoop(
            type(model)._sample, model, tokens, LogitsProcessorList(), StoppingCriteriaList(),
            model.generation_config, synced_gpus=False, streamer=None,
        ),
    )  # fmt: skip
    failed = LoopStep(2, run=UnreadStep(model.forward, (), {}, StepSnapshot((), (), {}), own.version))
    if is_cured:
        with fault(model, DOWN, "cublas"), torch.no_grad():
            model(**ONE_ROW)
    watch.begin_again(failed)
    watch.after_selection(tokens[:, -1], torch.zeros(1, dtype=torch.bool))
    monkeypatch.setattr(here, "running", ((own, model, CALL),))
    assert watch.takes_step() is is_cured
