"""Guard a model, and let it go again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import NotGuardedError
from ..models.origin import known_origin
from ..models.wrapped_methods import owner_of, unwrap_methods, wrap_method
from ..numerics.followed import is_followed
from ..planning import Plan, Policy
from .failure import Report
from .generate_batch import guarded_batch
from .restart_generate import guarded_generate
from .state import ATTRIBUTE, Guard, guard_of, here
from .step import guarded_step

M = TypeVar("M", bound=nn.Module)


def guard(model: M, *, policy: Policy | str | None = None, plan: Plan | None = None) -> M:
    """Guard every inference step of `model`: where its dtype fails, go on from that step in another one.

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
    unguard(model)
    origin = known_origin(model)
    plan = plan or (origin.plan if origin else None)
    wishes = Policy.of(policy)
    state = Guard(model, wishes or (plan.policy if plan else Policy()), plan)
    model.__dict__[ATTRIBUTE] = state
    wrap_method(PreTrainedModel if isinstance(model, PreTrainedModel) else type(model), "__call__", _guard_call, state)
    for inner in model.modules():
        if isinstance(inner, PreTrainedModel):
            inner.__dict__[ATTRIBUTE] = state
            wrap_method(PreTrainedModel, "__call__", _guard_call, state)
            wrap_method(PreTrainedModel, "get_compiled_call", _guard_compiled_call, state)
        if inner is model or isinstance(inner, PreTrainedModel):
            for name, wrap in (("generate", _guard_generate), ("generate_batch", _guard_batch)):
                owner = owner_of(type(inner), name)
                if owner is not None and _is_method(owner.__dict__[name]):
                    wrap_method(owner, name, wrap, state)
    return model


def _is_method(attribute: object) -> bool:
    """Whether an attribute of a class is called with an instance or the class: no static method, property or value."""
    return isinstance(attribute, classmethod) or (callable(attribute) and not isinstance(attribute, staticmethod))


def unguard(model: nn.Module) -> None:
    """Take the guard off `model`, without a trace. Does nothing where there is none."""
    state = guard_of(model)
    if state is None:
        return
    root = state.model() or model
    for module in root.modules():
        if guard_of(module) is state:
            del module.__dict__[ATTRIBUTE]
            module.__dict__.pop("_compiled_call", None)  # compiled from the guarded call
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


def _guard_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807  (it is one)
        own = self.__dict__
        state = own.get(ATTRIBUTE)
        if state is None or here.depth or self.training or state.batches:
            return original(self, *args, **kwargs)
        # A transform of `torch.func` follows the whole call: its tensors cannot be looked at, and nothing can be cured in it.
        if "_is_replica" in own or torch._C._is_tracing() or is_followed():
            return original(self, *args, **kwargs)
        here.depth = 1
        try:
            return guarded_step(state, self, functools.partial(original, self), args, kwargs)
        finally:
            here.depth = 0

    return __call__


def _guard_compiled_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_compiled_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = original(self, *args, **kwargs)
        state = guard_of(self)
        if state is None:
            return compiled

        def call(*args: Any, **kwargs: Any) -> Any:
            if state.runs_eagerly or here.depth or self.training:
                return self(*args, **kwargs)
            if is_followed():
                return compiled(*args, **kwargs)
            here.depth = 1
            try:
                return guarded_step(state, self, forward, args, kwargs)
            finally:
                here.depth = 0

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (self if state.runs_eagerly else compiled)(*args, **kwargs)

        return call

    return get_compiled_call


def _guard_generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = guard_of(self)
        if state is None or self.training or id(state) in here.nets:
            return original(self, *args, **kwargs)
        return guarded_generate(state, functools.partial(original, self), args, kwargs)

    return generate


def _guard_batch(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = guard_of(self)
        if state is None or self.training:
            return original(self, *args, **kwargs)
        return guarded_batch(state, functools.partial(original, self), args, kwargs)

    return generate_batch
