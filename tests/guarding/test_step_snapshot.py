"""Everything that a step changes can be brought back."""

from __future__ import annotations

from dataclasses import replace

import torch
from guarding.generators import tiny
from torch import nn

from safe_dtype.guarding.step_snapshot import StepSnapshot, state_places
from safe_dtype.guarding.written.written_places import NOTHING

IDS = torch.arange(3, 9)[None]
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@torch.no_grad()
def test_the_same_step_again() -> None:
    """Rolled back, the same step gives the same results and the same cache, as often as it is repeated."""
    model = tiny()
    cache = model(input_ids=IDS, use_cache=True).past_key_values
    kwargs = {"input_ids": torch.tensor([[9]]), "past_key_values": cache}
    snapshot = StepSnapshot(state_places(model), (), kwargs)
    expected = model(**kwargs).logits
    for _ in range(2):
        assert cache.get_seq_length() == IDS.shape[1] + 1
        assert snapshot.roll_back()
        assert cache.get_seq_length() == IDS.shape[1]
        assert torch.equal(model(**kwargs).logits, expected)


@torch.no_grad()
def test_random_numbers() -> None:
    """A step that draws numbers draws the same again; whether it drew any is known."""
    snapshot = StepSnapshot([], (), {})
    assert not snapshot.drew()
    drawn = torch.rand(3)
    assert snapshot.drew()
    assert snapshot.roll_back()
    assert torch.equal(torch.rand(3), drawn)
    settled = replace(NOTHING, is_settled=True)
    assert not StepSnapshot([], (), {}, written=settled).drew()


@torch.no_grad()
def test_states_of_modules() -> None:
    """States that a module keeps as a plain attribute come back, those that are written over in place too."""
    module = nn.Module()
    module.recurrent_states = torch.ones(2)
    module.other = torch.ones(2)
    places = state_places(module)
    assert places == [(module, "recurrent_states")]
    snapshot = StepSnapshot(places, (), {})
    module.recurrent_states.zero_()
    module.recurrent_states = None
    assert snapshot.roll_back()
    assert torch.equal(module.recurrent_states, torch.ones(2))


@torch.no_grad()
def test_lists_of_states() -> None:
    """Lists of states that a step writes into (RWKV's) come back in place."""
    states = [torch.ones(2), torch.ones(2)]
    snapshot = StepSnapshot([], (), {"state": states})
    states[0].zero_()
    assert snapshot.roll_back()
    assert torch.equal(states[0], torch.ones(2))


def test_an_unknown_state() -> None:
    """What looks like a state of a class that nobody knows cannot be rolled back; other objects do not matter."""

    class InferenceSession:
        pass

    class Options:
        pass

    assert not StepSnapshot([], (), {"session": InferenceSession()}).roll_back()
    assert StepSnapshot([], (), {"options": Options()}).roll_back()
