"""An autocast that a model opens by itself, inside of a forward: found by running a failed step once more.

Nothing tells of it from outside: it is closed when the step has failed. Weights in any dtype are multiplied in its own.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from inspect import unwrap
from types import CodeType, FrameType, FunctionType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.amp.autocast_mode import autocast

from ...models.wrapped_methods import unwrap_methods, wrap_method
from ...numerics import uncompiled
from ..blame import name_of
from ..callers_autocast import CallersAutocast

_ASKS = ("is_", "get_", "maybe_autocast")  # names that ask for one; transformers' own is only ever turned off by it
_NOT_THE_MODELS = ("torch", "transformers")  # packages whose functions are not looked through
_DEEPEST = 64  # frames from an autocast to the module that opens it


class _Look:
    """Needs torch's class of autocasts wrapped, for as long as it lasts."""


def autocasts_inside(model: nn.Module, error: BaseException | None, run: Callable[[], Any]) -> list[CallersAutocast]:
    """Return the autocasts that `model` opens in a step, each kind once: after an exception the latest first.

    Args:
        model: The guarded model.
        error: What the step raised; None where its numbers are bad.
        run: Runs the step once more; not called where no code of the model names an autocast.
    """
    if not names_autocast(model, error):
        return []
    seen: dict[tuple[str, torch.dtype], CallersAutocast] = {}
    members, thread = set(model.modules()), threading.get_ident()

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def __enter__(self: autocast) -> Any:  # noqa: N807  (it is one)
            entered = original(self)
            if threading.get_ident() == thread and torch.is_autocast_enabled(self.device):
                dtype = torch.get_autocast_dtype(self.device)
                opening = _module_running(sys._getframe(1), members)
                if self._enabled and opening is not None:
                    name = name_of(model, opening) or type(opening).__name__
                    seen.setdefault((self.device, dtype), CallersAutocast(self.device, dtype, name))
            return entered

        return __enter__

    look = _Look()
    wrap_method(autocast, "__enter__", noting, look)
    try:
        with uncompiled():
            run()
    finally:
        unwrap_methods(look)
    opened = list(seen.values())
    return opened if error is None else opened[::-1]


def _module_running(frame: FrameType | None, members: set[nn.Module]) -> nn.Module | None:
    for _ in range(_DEEPEST):
        if frame is None:
            return None
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and module in members:
            return module
        frame = frame.f_back
    return None


def names_autocast(model: nn.Module, error: BaseException | None = None) -> bool:
    """Whether code of the model, or code that has raised, names an autocast."""
    # By identity: before Python 3.12 code with a slice among its constants, as torch's compiler makes it, has no hash.
    codes = {
        id(code): code for code in (*_codes_of(model), *_codes_in(error.__traceback__ if error is not None else None))
    }
    return any(_names_one(code) for code in codes.values())


def _codes_of(model: nn.Module) -> Iterator[CodeType]:
    classes = {base for module in model.modules() for base in type(module).__mro__} - set(nn.Module.__mro__)
    own = [base for base in classes if base.__module__.partition(".")[0] != "torch"]
    around = {name for base in own if (name := base.__module__).partition(".")[0] not in _NOT_THE_MODELS}
    for namespace in (
        *(vars(base) for base in own),
        *(vars(sys.modules[name]) for name in around if name in sys.modules),
        *(module.__dict__ for module in model.modules()),
    ):
        for value in list(namespace.values()):
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and (function.__module__ or "torch").partition(".")[0] != "torch":
                yield function.__code__
                yield from _codes_wrapped_in(function)


def _codes_wrapped_in(function: FunctionType) -> Iterator[CodeType]:
    inner = unwrap(function)
    if inner is not function and isinstance(inner, FunctionType):
        yield inner.__code__


def _codes_in(traceback: TracebackType | None) -> Iterator[CodeType]:
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if "/torch/" not in code.co_filename and "\\torch\\" not in code.co_filename:
            yield code
        traceback = traceback.tb_next


def _names_one(code: CodeType) -> bool:
    names = (*code.co_names, *code.co_freevars)
    return any("autocast" in name and not name.startswith(_ASKS) for name in names) or any(
        _names_one(inner) for inner in code.co_consts if isinstance(inner, CodeType)
    )
