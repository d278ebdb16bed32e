"""Guard a model, and let it go again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from torch import nn

from ..errors import NotGuardedError
from ..models.origin import known_origin
from ..models.planned_layout import take_compiled_off
from ..models.quantized.unpacked import unpack_now
from ..models.wrapped_methods import unwrap_methods
from ..planning import Plan, Policy
from ..rescaling.folding.alone import wait_by
from .entries import put_on, take_off_own
from .failure import Report
from .shared_steps import shared_steps_of
from .state import ATTRIBUTE, Guard, guard_of, guards


def _change_of(model: nn.Module) -> AbstractContextManager[object]:
    state = guard_of(model)
    return nullcontext() if state is None else state.lock.change()


wait_by(_change_of)

M = TypeVar("M", bound=nn.Module)


def guard(model: M, *, policy: Policy | str | None = None, plan: Plan | None = None) -> M:
    """Guard every inference step of `model`: where its dtype fails, go on from that step in another one.

    A step is a call of the model or of a model of transformers inside it, of `forward` by its name, or of a method that
    the model's class adds to those of every model and that is handed tensors. A model inside that has a guard of its own
    keeps it, for the calls that enter there.

    Args:
        model: A model of transformers, however it was loaded, or any `nn.Module`. Training mode is left alone.
        policy: The user's wishes: a `Policy` or its short text. Without one, that of the plan. In strict mode nothing
            is ever changed; `islands` allows to bring a single module into float32; `ladder` names the dtypes to go
            on in.
        plan: Where to go on. Without one, the plan that the model was loaded with; without that, float32.

    Returns:
        `model` itself. See `safe_dtype.report` for what happened to it.

    Raises:
        PolicyError: If `policy` is a text that cannot be read.
    """
    former = guard_of(model)
    if former is not None and former.model() is model:
        unguard(model)
    unpack_now(model)
    origin = known_origin(model)
    plan = plan or (origin.plan if origin else None)
    wishes = Policy.of(policy)
    state = Guard(model, wishes or (plan.policy if plan else Policy()), plan)
    inside = set(model.modules())
    for part in state.parts:
        nearer = guard_of(part)
        if part is model or nearer is None or nearer.model() not in inside:
            part.__dict__[ATTRIBUTE] = state
    state.shared = shared_steps_of(state)
    put_on(state, model)
    return model


def unguard(model: nn.Module) -> None:
    """Take the guard off `model`, without a trace. Does nothing where there is none."""
    state = guard_of(model)
    if state is None:
        return
    root = state.model()
    root = model if root is None else root
    state.is_off = True
    others = [other for other in guards() if other is not state]
    for module in {*root.modules(), *state.parts}:  # parts that were taken out of it since, too
        if guard_of(module) is not state:
            continue
        module.__dict__.pop("_compiled_call", None)  # compiled from the guarded call
        around = [other for other in others if module in other.parts]
        if around:  # the nearest model around it, of which it is a part
            module.__dict__[ATTRIBUTE] = min(around, key=lambda other: len(other.parts))
        else:
            del module.__dict__[ATTRIBUTE]
            take_off_own(module)
    if not any(root in other.parts for other in others):
        take_compiled_off(root)
    unwrap_methods(state)


def report(model: nn.Module) -> Report:
    """Return what happened to a guarded model so far.

    Raises:
        NotGuardedError: If neither `model` nor anything in it is guarded.
    """
    state = next((own for module in model.modules() if (own := guard_of(module)) is not None), None)
    if state is None:
        raise NotGuardedError(type(model).__name__)
    return state.report()
