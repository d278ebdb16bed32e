"""Evaluation inside of a training run, guarded as inference is, and no business of the training.

A step of evaluation that fails is run again without autocast, or on a copy of the weights in float32, and the pass goes on.
The weights, the optimizer and the precision that is trained in stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..guarding import guard
from ..guarding.events import changing
from ..guarding.state import Guard, guard_of
from ..planning import Policy


@contextmanager
def evaluating(model: nn.Module, policy: Policy | None = None) -> Iterator[None]:
    """Guard every step of evaluation in the block, and take back at its end what helped but for an autocast turned off.

    A model that nobody has guarded yet is guarded from here on. Weights that ranks have shared out among them are left
    alone: a step that one rank repeats would leave the others waiting.

    Args:
        model: What is evaluated, as it was before it was wrapped for several ranks.
        policy: Of a new guard. In strict mode none is put on.
    """
    states = [] if _is_shared_out(model) else _guards_in(model, policy)
    before = [(state, state.weights_stay, state.logs) for state in states]
    for state in states:
        state.weights_stay, state.logs = True, []
    try:
        yield
    finally:
        for state, stay, logs in before:
            _take_back(state)
            state.weights_stay, state.logs = stay, logs


def guard_evaluation(trainer: Any, policy: Policy | None = None) -> None:
    """Have every `evaluate` and `predict` of one Trainer, whatever its class, run guarded: see `evaluating`."""
    original = trainer.evaluation_loop

    @functools.wraps(original)
    def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
        with evaluating(trainer.model, policy):
            return original(*args, **kwargs)

    trainer.evaluation_loop = evaluation_loop


def keep_weights(model: nn.Module) -> None:
    """Have no guard in `model` change weights any more: an optimizer has them."""
    for state in _existing_guards(model):
        state.weights_stay = True


def _guards_in(model: nn.Module, policy: Policy | None) -> list[Guard]:
    states = _existing_guards(model)
    if not states and not (policy is not None and policy.mode == "strict"):
        guard(model, policy=policy)
        states = _existing_guards(model)
    return states


def _existing_guards(model: nn.Module) -> list[Guard]:
    states = {id(state): state for module in model.modules() if (state := guard_of(module)) is not None}
    return list(states.values())


def _is_shared_out(model: nn.Module) -> bool:
    return any(hasattr(weight, "_local_tensor") or hasattr(weight, "ds_id") for weight in model.parameters())


def _take_back(state: Guard) -> None:
    if not state.logs:
        return
    with changing(state):
        events = list(state.events)  # they have happened all the same
        for log in reversed(state.logs):
            log.undo()
        state.events[:] = events
        state.version += 1
