"""Casts at the border of one module: a float32 island in a 16-bit model, or inputs brought to the weights' dtype."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from typing import Any
from weakref import ref

import torch
from torch import nn

from .casting import cast

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class _Later:
    """A call that is made when it is read from a pickle."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._reduced = function, args

    def __call__(self, *args: Any) -> Any:
        """Make the call now, and call what it returns: pickle asks that what it will call can be called."""
        function, arguments = self._reduced
        return function(*arguments)(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def hook_or_nothing(make: str, *args: Any, module: str = __name__) -> tuple[Any, ...]:
    """Return how a hook is pickled: what `make`, a function of `module`, returns; elsewhere a hook of no effect.

    A pickled model can be read where safe_dtype is not installed. The standard library alone decides there: nothing of
    ours is imported.
    """
    nothing = _Later(getattr, nullcontext(), "__exit__")  # takes any arguments, and returns None
    modules = _Later(getattr, _Later(import_module, "sys"), "modules")
    here = _Later(_Later(getattr, modules, "get"), module)
    return getattr, (_Later(_Later(getattr, here, make, nothing), *args), "itself", nothing)


class CastInputs:
    """A forward pre-hook that casts the inputs of a module to the dtype of its weights."""

    @property
    def itself(self) -> CastInputs:
        """This hook: what a pickle of it asks for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return hook_or_nothing("CastInputs")

    def __deepcopy__(self, _memo: Any) -> CastInputs:
        return CastInputs()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cast."""
        own = next(one.dtype for one in module.parameters() if one.is_floating_point())
        others = {dtype for dtype in _FLOATS if dtype != own}
        return cast(args, others, own), cast(dict(kwargs), others, own)


class _PickledIn:
    """What an island's parameter has as its `__reduce_ex__`: it is pickled in the dtype of the model around it.

    A model that is read without us is the plain one, in one dtype. Numbers beyond that dtype's range stay in float32.
    """

    def __init__(self, parameter: nn.Parameter, island: Island) -> None:
        self._parameter, self._island = ref(parameter), island

    def __call__(self, protocol: Any) -> Any:
        parameter = self._parameter()
        assert parameter is not None
        cast_data = parameter.data.to(self._island.outside)
        values = cast_data if bool(cast_data.isfinite().all()) else parameter.data
        return nn.Parameter(values, parameter.requires_grad).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


class _Entry:
    """The forward pre-hook of an island."""

    def __init__(self, island: Island) -> None:
        self.island = island

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cast the inputs to the dtype of the weights: float32, unless the island was pickled."""
        return self.island.enter(module, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.island, "entry", _Later(getattr, nullcontext(), "__exit__"))

    def __deepcopy__(self, memo: Any) -> _Entry:
        return copy.deepcopy(self.island, memo).entry


class Island:
    """Hooks of a module that computes in float32 inside a model in the dtype `outside`."""

    def __init__(self, outside: torch.dtype) -> None:
        self.outside = outside
        self.entry = _Entry(self)

    @property
    def itself(self) -> Island:
        """These hooks: what a pickle of them asks for."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return hook_or_nothing("Island", self.outside)

    def __deepcopy__(self, memo: Any) -> Island:
        return memo.setdefault(id(self), Island(self.outside))  # type: ignore[no-any-return]

    def attach(self, module: nn.Module) -> None:
        """Cast the inputs of `module` to float32, and its output to the dtype of the model around it."""
        module.register_forward_pre_hook(self.entry, with_kwargs=True, prepend=True)
        module.register_forward_hook(self)
        self.mark(module)

    def mark(self, module: nn.Module) -> None:
        """Have the parameters of `module` pickled in the dtype of the model around it."""
        for parameter in module.parameters():
            parameter.__dict__["__reduce_ex__"] = _PickledIn(parameter, self)

    def detach(self, module: nn.Module) -> None:
        """Take the casts off again."""
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (self, self.entry)]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
        for parameter in module.parameters():
            parameter.__dict__.pop("__reduce_ex__", None)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Cast the inputs to float32; what was pickled computes in the dtype of its weights."""
        first = next(module.parameters(), None)
        if first is None:
            own = torch.float32
        else:
            own = first.dtype if first.dtype == self.outside else torch.float32
            if "__reduce_ex__" not in first.__dict__:  # a copy of the module
                self.mark(module)
        return cast(args, {self.outside}, own), cast(dict(kwargs), {self.outside}, own)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Cast the output."""
        return cast(output, {torch.float32}, self.outside)

    def outside_is_now(self, dtype: torch.dtype) -> None:
        """Follow the model into another dtype."""
        self.outside = dtype


def islands_in(model: nn.Module) -> Iterator[str]:
    """Yield the names of the modules of `model` that are islands. In a model that is in float32 now, none is."""
    for name, module in model.named_modules():
        hooks = [hook for hook in module._forward_hooks.values() if isinstance(hook, Island)]
        if any(hook.outside != torch.float32 for hook in hooks):
            yield name


def can_be_island(model: nn.Module, module: nn.Module) -> str | None:
    """Return why `module` cannot leave the dtype of `model`; None where it can."""
    if module is model:
        return "it is the whole model"
    own = {id(one) for one in module.parameters()}
    inside = {id(one) for one in module.modules()}
    for other in model.modules():
        if id(other) not in inside and own & {id(one) for one in other.parameters(recurse=False)}:
            return "its weights are tied to another module's"
    return None
