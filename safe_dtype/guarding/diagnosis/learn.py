"""Keep what an experiment has taught of a text that nobody knew."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_modules

from ...devices import checkpoint_key, remember_learned
from ...errors import NoSuchDeviceError
from ...facts import Dtype, LearnedFailure
from ..blame import name_of
from ..classify import text_of
from .findings import Findings

logger = logging.getLogger(__name__)

_HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\":]+")
_TOKENS = re.compile(r"\bhf_[A-Za-z0-9]+")


def lesson(model: nn.Module, error: BaseException, dtype: Dtype | None, findings: Findings) -> LearnedFailure:
    """Return what the trials showed of `error`, in words that can be stored and sent to others.

    Args:
        model: The guarded model.
        error: What it raised; no text told of it.
        dtype: The dtype of the model then.
        findings: What the trials showed.
    """
    failed: Any = model if findings.module is None else findings.module
    devices = (str(weight.device) for weight in model.parameters() if not weight.is_meta)
    return LearnedFailure(
        family=str(getattr(getattr(model, "config", None), "model_type", None) or type(model).__name__),
        op=f"{type(failed).__name__}.{_function(error.__traceback__)}",
        dtype=str(dtype),
        device=next(devices, "cpu"),
        module=name_of(model, failed),
        error=type(error).__name__,
        text=without_personal_paths(text_of(error)),
        works_in=tuple(one.name for one in findings.dtypes),
        trials=tuple(without_personal_paths(str(trial)) for trial in findings.trials),
        checkpoint=_checkpoint(model, error),
    )


def keep(lessons: Iterable[LearnedFailure]) -> None:
    """Remember them beside the verdicts on their devices. What cannot be remembered is logged."""
    try:
        for failure in lessons:
            remember_learned(failure)
    except (NoSuchDeviceError, RuntimeError) as exc:  # the device may not even say its name any more
        logger.warning("what was learned cannot be remembered: %s", exc)


def without_personal_paths(text: str) -> str:
    """Return `text` with the folders of this user and of this Python replaced, and tokens of the Hub masked."""
    places = {sys.prefix: "<python>", str(Path.cwd()): "."}
    home = os.environ.get("HOME") or os.environ.get("USERPROFILE")
    if home and len(home) > 1:
        places[home] = "~"
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            # A name that goes on is another folder's.
            text = re.sub(rf"{re.escape(place)}(?!\.*[\w-])", places[place], text)
    return _TOKENS.sub("hf_***", _HOMES.sub("~", text))


def _checkpoint(model: nn.Module, error: BaseException) -> str | None:
    """Return whose later loads fail so; None where the model was made on the spot, or a hook of the user's has failed."""
    source = getattr(getattr(model, "config", None), "_name_or_path", None)
    if not source or not isinstance(source, str | os.PathLike):
        return None
    return None if _passes_through_hooks(model, error.__traceback__) else checkpoint_key(os.fspath(source))


def _passes_through_hooks(model: nn.Module, traceback: TracebackType | None) -> bool:
    """Whether an exception came out of a hook that somebody registered: another load has none."""
    codes = set(_codes_of_hooks(model))
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def _codes_of_hooks(model: nn.Module) -> Iterator[CodeType]:
    registries: list[Any] = [torch_modules._global_forward_pre_hooks, torch_modules._global_forward_hooks]
    for module in model.modules():
        registries += [module._forward_pre_hooks, module._forward_hooks]
    for registry in registries:
        for hook in list(registry.values()):
            function = _function_of(hook)
            code = getattr(function, "__code__", None)
            # torch's own, of `weight_norm` say, belong to the module.
            if isinstance(code, CodeType) and not str(getattr(function, "__module__", "")).startswith("torch."):
                yield code


def _function_of(hook: Callable[..., Any]) -> Any:
    """Return the Python function that runs where `hook` is called, whatever is wrapped around it."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function: Any = inspect.unwrap(hook)
    if not hasattr(function, "__code__") and not hasattr(function, "__func__"):
        function = inspect.unwrap(type(function).__call__)
    return getattr(function, "__func__", function)


def _function(traceback: TracebackType | None) -> str:
    name = "forward"
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_code.co_name, traceback.tb_next
    return name
