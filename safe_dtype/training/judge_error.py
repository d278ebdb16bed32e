"""What an exception in a window means for it, by the one place that knows such texts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..guarding import FailureKind, classify
from ..guarding.blame import module_raising, name_of
from ..guarding.classify import first_line, text_of
from ..ranks import Vote
from .judge_numbers import Judgement

logger = logging.getLogger(__name__)


def judge_error(error: Exception) -> tuple[Judgement, FailureKind]:
    """Return the vote of a rank on which `error` was raised, and what kind of failure it is."""
    failure = classify(error)
    if failure is None:
        return Judgement(Vote.FOREIGN, described(error)), FailureKind.OP_UNSUPPORTED
    return Judgement(Vote.FALL_BACK, described(error)), failure.kind


def described(error: Exception) -> str:
    """Return the class of an exception and the first line of its text."""
    return f"{type(error).__name__}: {first_line(text_of(error))}"


def module_in(models: Iterable[nn.Module], error: Exception | None) -> str | None:
    """Return the name of the module that `error` ended, in the first of the models in which it ended one."""
    if error is None:
        return None
    for model in models:
        if (module := module_raising(model, error.__traceback__)) is not None:
            return name_of(model, module)
    return None


def note_that_others_wait(error: Exception, problem: Exception) -> None:
    """Say with `error`, which is about to come out, what keeps the other ranks from hearing of it."""
    note = f"The other ranks wait until this process ends: {first_line(text_of(problem))}."
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:
        logger.warning("%s", note)


def reason_in(store: Any, key: str, vote: Vote) -> str:
    """Return what a rank has written down for its vote: that of an error may have ended it since, and with rank 0 the store."""
    try:
        return str(store.get(key).decode())
    except RuntimeError as exc:
        if vote is not Vote.FOREIGN:
            raise
        return f"it has ended, and its error can be read there alone ({first_line(text_of(exc))})"
