"""What one part of a pipeline hands to another is cast as it enters, while the parts are in several dtypes."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ...guarding.state import Guard, guard_of
from ...models.casting import FLOATS, cast
from ...models.recast import main_dtype

# What carries the values of another part, by the ends of diffusers' names of arguments. Others stay in the dtype that the
# pipeline chose: times and rotary angles in float32 say more than in 16 bit.
_VALUES = (
    "sample", "hidden_states", "embeds", "projections", "residuals", "residual", "z", "x", "context", "image_embeddings",
    "added_cond_kwargs",
)  # fmt: skip
_INNER = ("encoder", "decoder", "quant_conv", "post_quant_conv")  # of autoencoders, whose `decode` is no call


class _Dtypes:
    """The dtypes that the parts of one pipeline are in, found anew only where a part was changed."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        self._models = [weakref.ref(model) for model in models]
        self._key: tuple[Any, ...] = ()
        self._mains: dict[int, torch.dtype | None] = {}

    def of(self, model: nn.Module) -> torch.dtype | None:
        """Return the dtype that what enters `model` is cast to; None where all parts are in one."""
        living = [part for reference in self._models if (part := reference()) is not None]
        key = tuple((id(part), _version(part), _first_dtype(part)) for part in living)
        if key != self._key:
            self._mains = {id(part): main_dtype(part) for part in living}
            self._key = key
        return self._mains.get(id(model)) if len({*self._mains.values()} - {None}) > 1 else None

    def beside(self, model: nn.Module | None) -> set[int]:
        """Return the `id` of each part that is still there, but for `model`."""
        return {id(part) for reference in self._models if (part := reference()) is not None and part is not model}

    def replace(self, part: nn.Module, other: nn.Module) -> None:
        """Look at `other` where `part` was looked at."""
        self._models = [weakref.ref(other) if reference() is part else reference for reference in self._models]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Dtypes:
        """Return one for all parts that are copied in one go: each of them takes its place as its hook is copied."""
        return memo.setdefault(id(self), _Dtypes([part for ref in self._models if (part := ref()) is not None]))  # type: ignore[no-any-return]


class _CastOnEntry:
    """A hook before the forward of a part, or of a module in it: one, of however many pipelines it is a part.

    A deep copy of the part gets one of its own; a pickled one gets none, as it gets no guard.
    """

    def __init__(self, part: nn.Module, pipelines: list[_Dtypes]) -> None:
        self._part, self._pipelines = weakref.ref(part), pipelines

    def is_of(self, part: nn.Module) -> bool:
        """Whether it casts what enters `part`."""
        return self._part() is part

    def join(self, dtypes: _Dtypes) -> None:
        """Look at the parts of one more pipeline; those of pipelines that are gone are forgotten."""
        part, own = self._part(), dtypes.beside(self._part())
        pipelines = [known for known in self._pipelines if (others := known.beside(part)) and not others <= own]
        if not any(own <= known.beside(part) for known in pipelines):
            pipelines.append(dtypes)
        self._pipelines = pipelines

    def __deepcopy__(self, memo: dict[int, Any]) -> _CastOnEntry:
        part = self._part()
        copied = memo.get(id(part))
        if part is None or copied is None:  # only a module in it is being copied
            return self
        pipelines = [copy.deepcopy(dtypes, memo) for dtypes in self._pipelines]
        for dtypes in pipelines:
            dtypes.replace(part, copied)
        return _CastOnEntry(copied, pipelines)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")  # takes any arguments, returns None, and needs nothing of ours

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():  # first, for a compiler follows this line and nothing else of ours
            return None
        part = self._part()
        if part is None or guard_of(part) is None:
            return None
        dtype = next((dtype for dtypes in self._pipelines if (dtype := dtypes.of(part)) is not None), None)
        if dtype is None:
            return None
        if module is not part:
            dtype = _first_dtype(module) or dtype
        others = FLOATS - {dtype}
        if dtype == torch.float32:  # holds whatever it is
            return cast(args, others, dtype), cast(kwargs, others, dtype)
        first, *rest = args or (None,)
        carried = {name: cast(value, others, dtype) for name, value in kwargs.items() if name.endswith(_VALUES)}
        return (cast(first, others, dtype), *rest) if args else (), {**kwargs, **carried}


def cast_between(models: Mapping[str, nn.Module]) -> None:
    """Have what enters each of `models`, the parts of one pipeline, cast to its dtype while they are in several.

    As long as all are in one, and when a part is no longer guarded, nothing is touched.
    """
    dtypes = _Dtypes(models.values())
    for model in models.values():
        entered = [inner for name in _INNER if isinstance(inner := getattr(model, name, None), nn.Module)]
        for module in (entered if hasattr(model, "decode") else None) or [model]:
            hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _CastOnEntry))
            known = next((hook for hook in hooks if hook.is_of(model)), None)
            if known is not None:
                known.join(dtypes)
            else:
                module.register_forward_pre_hook(_CastOnEntry(model, [dtypes]), with_kwargs=True)


def _version(model: nn.Module) -> int:
    guard: Guard | None = guard_of(model)
    return -1 if guard is None else guard.version


def _first_dtype(model: nn.Module) -> torch.dtype | None:
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
