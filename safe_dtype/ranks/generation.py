"""Replicated generation: every rank holds the whole model and answers its own prompts, all of them in one dtype.

What has to agree is the dtype, so that an answer does not depend on the rank that gave it. When the ranks agree is another
matter, and there are two answers:

* **By themselves** (`Announcements`), for ranks that generate as often as they like. accelerate's
  `split_between_processes` gives one rank an empty share, lm-eval divides requests by length, and often only rank 0 writes
  a sample: a vote in each `generate` would wait there for ranks that never come. So nobody waits. A rank whose dtype fails
  goes on from the step that failed, as it would alone, and announces it in the store of torch.distributed; the others look
  there, with one short message, when they begin their next `generate`, and step down before it. Until then the dtypes
  differ.
* **In lockstep** (`agreeing`), for ranks that all call `generate` equally often, and want every answer to come from one
  dtype: one vote in each `generate`. Where a rank has failed, all make that generation anew in the next dtype.

A model steps down from the weights of its checkpoint, not from those that the failed dtype had rounded. What is agreed on
is the dtype alone: a rank that was helped by another attention kernel, or by a module in float32, keeps that for itself.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..guarding import guard
from ..guarding.state import guard_of
from .lockstep import Lockstep
from .model_key import model_key
from .world import current_world

M = TypeVar("M", bound=nn.Module)


def agreeing(model: M, *, seconds: float | None = None) -> M:
    """Have all ranks generate in lockstep with their copies of `model`: every answer comes from the one dtype.

    Every rank has to call this, and then `model.generate` equally often, one at a time: each of them ends with a vote, and
    where a rank has failed in its dtype, all make that generation anew in the next one, with the same random numbers. What
    was streamed, or seen by criteria of the caller, is not made anew: it went on from the step that failed. An error that
    no dtype cures is raised on its rank, and as `RemoteFailure` on all others.

    Args:
        model: A model that this rank holds as a whole; guarded here where it is not. `unguard` ends it.
        seconds: How long a rank waits for the slowest one, at the end of each generation; None: as long as the world says.

    Returns:
        `model` itself. In a job of one rank it is guarded, and nothing else.

    Raises:
        RanksDisagreeError: If the ranks hold different models.
        PeerLostError: Here and in every `generate`, if a rank has ended or does not come.
    """
    state = guard_of(model)
    if state is None or state.model() is not model:
        state = guard_of(guard(model))
    world = current_world()
    if world is None or state is None:
        return model
    lockstep = Lockstep(world, model_key(model), seconds)
    lockstep.join(state)
    state.peers = lockstep
    return model
