"""Put a guard around every entry of a model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import compiler, nn
from transformers import PreTrainedModel

from ...models.wrapped_methods import Wrap, owner_of, wrap_method
from ...numerics.followed import is_followed
from ..deferred.sampling_loop import guard_sample
from ..generate_batch import guarded_batch, step_of_a_batch
from ..restart_generate import guarded_generate
from ..state import CALL, Guard, guard_of, guard_of_called, here
from ..step import guarded_step
from .attention_of_steps import quicken_attention
from .batch_loop import guard_batch_loop
from .codes import Codes, with_numbers
from .entry_methods import FORWARD, entry_methods, is_step
from .growing_cache import grow_prepared, with_plain_cache
from .left_out import leave_out_of_graphs
from .nesting import is_covered, set_aside
from .own_forward import put_on_own
from .peers import generate_among_peers

_is_tracing = torch._C._is_tracing


def put_on(guard: Guard, model: nn.Module) -> None:
    """Wrap the entries of the classes of `model` and of the models of transformers inside it, for as long as `guard` lives.

    Classes are wrapped, not instances: `copy.deepcopy` and what reads the signature of `forward` find what they know. A
    wrapper passes on calls of instances that no guard answers for. Only a `forward` that an instance has of its own is
    wrapped in its place.
    """
    leave_out_of_graphs()
    wrap_method(
        PreTrainedModel if isinstance(model, PreTrainedModel) else type(model), CALL, _guard_call, guard, packed=True
    )
    if any(isinstance(part, PreTrainedModel) for part in guard.parts):
        wrap_method(PreTrainedModel, CALL, _guard_call, guard, packed=True)
        wrap_method(PreTrainedModel, "get_compiled_call", _guard_compiled_call, guard)
        guard_batch_loop(guard)
    quicken_attention(guard, model)
    for part in guard.parts:
        put_on_own(part, _guard_method(FORWARD))
    for model_class in {type(part): None for part in guard.parts}:
        for name, wrap in (
            ("generate", _guard_generate), ("generate_batch", _guard_batch), ("_sample", guard_sample),
            ("_prepare_cache_for_generation", grow_prepared),
        ):  # fmt: skip
            owner = owner_of(model_class, name)
            if owner is not None and _is_method(owner.__dict__[name]):
                wrap_method(owner, name, wrap, guard)
        for owner, name in entry_methods(model_class):
            wrap_method(owner, name, _guard_method(name), guard, packed=True)


def _is_method(attribute: object) -> bool:
    """Whether an attribute of a class is called with an instance or the class: no static method, property or value."""
    return isinstance(attribute, classmethod) or (callable(attribute) and not isinstance(attribute, staticmethod))


def _guard_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: N807  (it is one)
        guard, call = guard_of_called(self), original.__get__(self)
        if guard is None:
            return call(*args, **kwargs)
        if _is_let_be(guard, self, CALL):
            return step_of_a_batch(guard, self, call, args, kwargs) if guard.batches else call(*args, **kwargs)
        return guarded_step(guard, self, call, args, kwargs)

    return __call__


@functools.cache
def _guard_method(name: str) -> Wrap:
    run = _run_forward if name == FORWARD else functools.partial(_run_method, name)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Inside a call of the same module, as nearly always, at no cost that counts.
            if (steps := here.running) and steps[-1][1] is self and steps[-1][2] is CALL:
                return original(self, *args, **kwargs)
            guard = guard_of_called(self)
            if guard is None or _is_let_be(guard, self, name):
                return original(self, *args, **kwargs)
            return run(guard, self, original.__get__(self), args, kwargs)

        return method

    return wrap


def _run_forward(
    guard: Guard, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return guarded_step(guard, module, forward, args, kwargs, FORWARD)


def _run_method(
    name: str, guard: Guard, module: nn.Module, method: Callable[..., Any], args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    known = (type(module), name)
    if known in guard.without_modules or not is_step(args, kwargs):
        return method(*args, **kwargs)
    if known in guard.with_numbers:
        return guarded_step(guard, module, method, args, kwargs, name)
    output = guarded_step(guard, module, with_numbers(module, method), args, kwargs, name)
    if isinstance(output, Codes):
        return output.output
    guard.with_numbers.add(known)
    return output


def _is_let_be(guard: Guard, module: nn.Module, entry: str) -> bool:
    """Whether a call is no step: in training, while tracing or exporting, and inside of one."""
    if (here.running and is_covered(guard, module, entry)) or module.training or guard.batches:
        return True
    if here.trains and torch.is_grad_enabled():
        return True
    # A transform of `torch.func` follows the whole call: its tensors cannot be looked at, and nothing can be cured in it.
    return "_is_replica" in module.__dict__ or compiler._is_compiling_flag or _is_tracing() or is_followed()


def _guard_compiled_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_compiled_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = original(self, *args, **kwargs)
        guard = guard_of(self)
        if guard is None:
            return compiled
        version = guard.version

        def call(*args: Any, **kwargs: Any) -> Any:
            if guard.runs_eagerly or self.training or is_covered(guard, self, CALL):
                return self(*args, **kwargs)
            if is_followed():
                return compiled(*args, **kwargs)
            return guarded_step(guard, self, forward, args, kwargs)

        def forward(*args: Any, **kwargs: Any) -> Any:
            # A model that a remedy has changed would be compiled anew amid a text, which takes longer than the rest of it.
            is_as_compiled = not guard.runs_eagerly and guard.version == version
            return (compiled if is_as_compiled else self)(*args, **kwargs)

        return call

    return get_compiled_call


def _guard_generate(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard = guard_of_called(self)
        if guard is None or self.training or is_covered(guard, self, "generate"):
            return original(self, *args, **kwargs)
        with set_aside(guard):
            if id(guard) in here.nets:
                return with_plain_cache(original(self, *args, **kwargs))
            output = generate_among_peers(guarded_generate, guard, functools.partial(original, self), args, kwargs)
            return with_plain_cache(output)

    return generate


def _guard_batch(original: Callable[..., Any]) -> Callable[..., Any]:
    def generate_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard = guard_of_called(self)
        if guard is None or self.training:
            return original(self, *args, **kwargs)
        return generate_among_peers(guarded_batch, guard, functools.partial(original, self), args, kwargs)

    return generate_batch
