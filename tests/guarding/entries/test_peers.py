"""Around every generation the peers of a model are asked: what they say is done, and nobody sees a token twice."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from guarding.generators import DOWN, ONE_ROW, Tape, generate, generator, tiny

from safe_dtype import FLOAT32, Event, guard, report
from safe_dtype.guarding.entries.peers import ask_peers
from safe_dtype.guarding.failure import Failure, FailureKind
from safe_dtype.guarding.recover import change_dtype
from safe_dtype.guarding.state import Guard, guard_of
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault

FAILURE = Failure(FailureKind.OP_UNSUPPORTED, "rank 1: no kernel")


class OneThatFails:
    """A peer that has failed in bfloat16, once, while the first generation of this process ran."""

    begin_anew = True

    def __init__(self) -> None:
        self.heard: list[str] = []

    def before_generate(self, guard: Guard) -> None:
        """Note it."""
        self.heard.append("before")

    def after_generate(self, guard: Guard, error: Exception | None) -> bool:
        """Note it; the first time have failed."""
        self.heard.append("after" if error is None else type(error).__name__)
        if len(self.heard) > 2 or error is not None:
            return False
        change_dtype(guard, FLOAT32, FAILURE)
        return True


def with_peers(peers: OneThatFails) -> torch.nn.Module:
    """Return a guarded generator with a peer of its own."""
    model = guard(generator())
    state = guard_of(model)
    assert state is not None
    state.peers = peers
    return model


@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampling"])
def test_a_generation_is_made_anew_in_the_dtype_of_the_peers(options: dict[str, bool]) -> None:
    """Tokens, scores and random numbers are those of a generation that began in that dtype."""
    peers = OneThatFails()
    model, plain = with_peers(peers), generator()
    recast(plain, {torch.bfloat16}, torch.float32)
    assert generate(model, **ONE_ROW, **options).differs(generate(plain, **ONE_ROW, **options)) == []
    assert peers.heard == ["before", "after", "after"]


def test_what_a_peer_has_met_is_an_event() -> None:
    """The report says what happened, and where."""
    model = with_peers(OneThatFails())
    generate(model, **ONE_ROW)
    (event,) = report(model).events
    assert (event.before.name, event.after, event.message) == ("bfloat16", FLOAT32, FAILURE.message)
    assert isinstance(event, Event)


def test_nothing_is_streamed_twice() -> None:
    """A generation that was streamed is not made anew; the model is in the dtype of the peers for the next one."""
    model, tape = with_peers(OneThatFails()), Tape()
    tokens = model.generate(**ONE_ROW, max_new_tokens=5, do_sample=False, streamer=tape)
    assert tape.tokens == tokens[0].tolist()
    assert model.dtype == torch.float32


def test_peers_hear_of_an_error() -> None:
    """An error comes through as it is, and the peers have heard of it."""
    peers = OneThatFails()
    model = with_peers(peers)
    with fault(model, DOWN, "shape"), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        generate(model, **ONE_ROW)
    assert peers.heard == ["before", "RuntimeError"]


def test_peers_of_the_whole_process() -> None:
    """Models without peers of their own ask those of the process."""
    peers = OneThatFails()
    registration = ask_peers(peers)
    try:
        model = guard(generator())
        generate(model, **ONE_ROW)
    finally:
        registration.remove()
    generate(model, **ONE_ROW)
    assert peers.heard == ["before", "after", "after"]
    assert model.dtype == torch.float32


@pytest.mark.needs("transformers>=5.17")  # 5.16 drops requests that fail
def test_a_continuous_batch_is_told_as_well() -> None:
    """Peers hear of its end; it is not made anew, and the model is in their dtype for the next one."""
    peers = OneThatFails()
    model = guard(tiny())
    state = guard_of(model)
    assert state is not None
    state.peers = peers
    config = tf.GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    pool = tf.ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=64)
    done = model.generate_batch([[5, 6, 7]], config, continuous_batching_config=pool)
    assert done["req_0"].error is None
    assert peers.heard == ["before", "after", "after"]
    assert model.dtype == torch.float32
