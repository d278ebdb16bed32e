"""Keep what an experiment has taught of a text that nobody knew."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from ...devices import remember_learned
from ...errors import NoSuchDeviceError
from ...facts import Dtype, LearnedFailure
from ..blame import name_of
from ..classify import text_of
from .findings import Findings

logger = logging.getLogger(__name__)

_HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\Users\\)[^/\\\s'\":]+")


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
    )


def keep(lessons: Iterable[LearnedFailure]) -> None:
    """Remember them beside the verdicts on their devices. What cannot be remembered is logged."""
    try:
        for failure in lessons:
            remember_learned(failure)
    except (NoSuchDeviceError, RuntimeError) as exc:  # the device may not even say its name any more
        logger.warning("what was learned cannot be remembered: %s", exc)


def without_personal_paths(text: str) -> str:
    """Return `text` with the folders of this user and of this Python replaced."""
    places = {sys.prefix: "<python>", str(Path.cwd()): "."}
    home = os.environ.get("HOME") or os.environ.get("USERPROFILE")
    if home and len(home) > 1:
        places[home] = "~"
    for place in sorted(places, key=len, reverse=True):
        if len(place) > 1:
            text = text.replace(place, places[place])
    return _HOMES.sub("~", text)


def _function(traceback: TracebackType | None) -> str:
    name = "forward"
    while traceback is not None:
        name, traceback = traceback.tb_frame.f_code.co_name, traceback.tb_next
    return name
