"""Exceptions that a hook of the caller's has raised on purpose: no failure of the model, but how a call of it was left."""

from __future__ import annotations

import dis
import sys
from pathlib import PurePath
from types import CodeType, FrameType, TracebackType

from torch import nn
from torch.nn.modules import module as modules_of_torch

from ...processes.handler_exceptions import code_of

_RAISE = dis.opmap["RAISE_VARARGS"]  # `raise`, and `assert`
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_OTHERS = frozenset({"builtins", "torch", "safe_dtype", "transformers_modules"})


def is_raised_by_a_hook(exc: BaseException) -> bool:
    """Whether a forward hook of the caller's, or a function that it calls, raised `exc`, of a class of the caller's own.

    Of Python's own classes is what kernels raise, and a hook may be the code of a backend: those are put to the test.
    """
    if _is_of_others(type(exc).__module__):
        return False
    hooks: set[CodeType] = set()
    last: TracebackType | None = None
    is_inside = False
    trace = exc.__traceback__
    while trace is not None:
        last, frame = trace, trace.tb_frame
        if (module := _module_called(frame)) is not None:
            hooks, is_inside = _codes_of_hooks(module), False
        elif frame.f_code in hooks:
            is_inside = True
        trace = trace.tb_next
    return (
        is_inside
        and last is not None
        and _raises(last)
        and not _is_of_others(str(last.tb_frame.f_globals.get("__name__")))
    )


def _module_called(frame: FrameType) -> nn.Module | None:
    """Return the module that torch calls in this frame, with its hooks."""
    if frame.f_code.co_filename != modules_of_torch.__file__:
        return None
    module = frame.f_locals.get("self")
    return module if isinstance(module, nn.Module) else None


def _codes_of_hooks(module: nn.Module) -> set[CodeType]:
    hooks = [
        *module._forward_pre_hooks.values(), *module._forward_hooks.values(),
        *modules_of_torch._global_forward_pre_hooks.values(), *modules_of_torch._global_forward_hooks.values(),
    ]  # fmt: skip
    return {code for hook in hooks if isinstance(code := code_of(hook), CodeType)}


def _raises(trace: TracebackType) -> bool:
    """Whether the statement that raised is a `raise`: a function of torch raises where it is called."""
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE


def _is_of_others(module: str) -> bool:
    """Whether a Python module, by its name, is of a library or of a model's repository, and not the caller's."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module.partition(".")[0] in _OTHERS or not _PACKAGES.isdisjoint(PurePath(file).parts)
