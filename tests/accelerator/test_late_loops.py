"""Loops that learn late that they should stop, as on mps: one step has run ahead when a failure shows."""

from __future__ import annotations

from typing import Any

import pytest
from accelerator.loops import FOUR_ROWS, SAMPLED, counts, generate, on_the_device
from accelerator.rehearsal import Rehearsal
from guarding.generators import DOWN, NEW_TOKENS, ONE_ROW
from guarding.oracle import Switch
from transformers.generation.utils import DeferredStopCheck

from safe_dtype import FLOAT32, guard, report
from safe_dtype.testing import fault

OPTIONS = ONE_ROW | SAMPLED | {"return_dict_in_generate": False}


@pytest.fixture(autouse=True)
def _late(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_supported(device: Any, cache: Any, cache_is_returned: bool, is_assistant: bool) -> bool:
        return not is_assistant and (cache is None or cache.is_croppable or not cache_is_returned)

    monkeypatch.setattr(DeferredStopCheck, "is_supported", staticmethod(is_supported))


def pair(name: str, rehearsal: Rehearsal, switch_at: int) -> tuple[Any, Any]:
    """Return a plain model that is brought to float32 by hand at a call, and a guarded one that has generated before."""
    plain, model = on_the_device(name, rehearsal), guard(on_the_device(name, rehearsal))
    generate(model, rehearsal, **OPTIONS)
    Switch(plain, switch_at, FLOAT32)
    return plain, model


def assert_goes_on(model: Any, plain: Any, rehearsal: Rehearsal, step: int) -> None:
    """Assert that the guarded model gives what the plain one does, after one event at `step`."""
    made = generate(model, rehearsal, **OPTIONS)
    assert made.differs(generate(plain, rehearsal, **OPTIONS)) == []
    assert [event.step for event in report(model).events] == [step]


def test_a_loop_that_stops_one_step_late(rehearsal: Rehearsal) -> None:
    """Where transformers learns late that it should stop, as on mps, the step that it has run ahead is taken back too."""
    for options in (FOUR_ROWS | {"streamer": True}, ONE_ROW | SAMPLED | {"eos_token_id": 12, "pad_token_id": 0}):
        options = options | {"return_dict_in_generate": False}
        guarded = guard(on_the_device("qwen3", rehearsal))
        generate(guarded, rehearsal, **options)
        plain = on_the_device("qwen3", rehearsal)
        a_token, with_guard = (
            counts(one, rehearsal, 9, options) - counts(one, rehearsal, 3, options) for one in (plain, guarded)
        )
        assert with_guard.syncs == a_token.syncs
        for call, kind in ((0, "nan"), (4, "nan"), (5, "cublas"), (NEW_TOKENS - 1, "nan")):
            plain, model = on_the_device("qwen3", rehearsal), guard(on_the_device("qwen3", rehearsal))
            Switch(plain, call, FLOAT32)
            with fault(model, DOWN, kind, call=call) as put:
                made = generate(model, rehearsal, **options)
            assert put.fired
            assert made.differs(generate(plain, rehearsal, **options)) == []


def test_a_late_loop_over_layers_that_slide(rehearsal: Rehearsal) -> None:
    """The prompt has failed when the step after it has run: the cache is empty again, and known to be."""
    plain, model = pair("mistral", rehearsal, switch_at=0)
    with fault(model, DOWN, "nan", call=0):
        assert_goes_on(model, plain, rehearsal, step=0)


def test_both_steps_of_a_late_loop_may_fail(rehearsal: Rehearsal) -> None:
    """An exception in the step that runs ahead of one whose numbers were none: the earlier one is gone back to."""
    plain, model = pair("qwen3", rehearsal, switch_at=4)
    with fault(model, DOWN, "nan", call=4), fault(model, "model.layers.0.mlp.down_proj", "cublas", call=5):
        assert_goes_on(model, plain, rehearsal, step=4)
