"""Where the step cannot be run again: anew before anybody has seen a token, refused after."""

from __future__ import annotations

import pytest
import torch
import transformers
from guarding.generators import DOWN, IDS, ONE_ROW, Tape, generate, generator, with_unknown_cache

from safe_dtype import guard, report
from safe_dtype.errors import CannotResumeError
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32


def test_an_unknown_cache_begins_anew() -> None:
    """Where the step cannot be run again and nobody has seen a token, the generation begins anew."""
    model, plain = with_unknown_cache(guard(generator())), with_unknown_cache(generator())
    recast(plain, {BF16}, FP32)
    options = ONE_ROW | {"do_sample": True}
    with fault(model, DOWN, "cublas", call=2):
        assert generate(model, **options).differs(generate(plain, **options)) == []
    assert [event.restarted for event in report(model).events] == [True]


def test_nothing_is_streamed_twice() -> None:
    """Where the step cannot be run again and tokens were streamed, it is an error, and the model is cured."""
    model, tape = with_unknown_cache(guard(generator())), Tape()
    with fault(model, DOWN, "cublas", call=2), pytest.raises(CannotResumeError, match="tokens have been streamed"):
        model.generate(**ONE_ROW, max_new_tokens=5, do_sample=False, streamer=tape)
    assert len(tape.tokens) == IDS.shape[1] + 2
    assert model.dtype == FP32


def test_nobody_counts_twice() -> None:
    """Where the caller's own criteria have seen tokens of a generation that cannot go on, it is an error too."""
    model = with_unknown_cache(guard(generator()))
    seen = transformers.StoppingCriteriaList([lambda ids, scores, **_: torch.zeros(len(ids), dtype=torch.bool)])
    with fault(model, DOWN, "cublas", call=2), pytest.raises(CannotResumeError, match="stopping_criteria may have"):
        model.generate(**ONE_ROW, max_new_tokens=5, do_sample=False, stopping_criteria=seen)
    assert model.generate(**ONE_ROW, max_new_tokens=5, stopping_criteria=seen).shape == (1, 11)
