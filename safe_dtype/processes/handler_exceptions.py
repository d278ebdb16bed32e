"""Exceptions that a handler of a signal has raised: they end a call from outside, at any line."""

from __future__ import annotations

import functools
import signal
from types import CodeType
from typing import Any


def is_of_a_signal(exc: BaseException) -> bool:
    """Whether `exc` was raised while a handler of a signal ran, as timeouts by `signal.alarm` are, whatever their class."""
    codes = _codes_of_handlers()
    trace = exc.__traceback__ if codes else None
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _codes_of_handlers() -> set[CodeType]:
    handlers = (signal.getsignal(number) for number in signal.valid_signals())
    codes = {code_of(handler) for handler in handlers if callable(handler)}
    return {code for code in codes if isinstance(code, CodeType)}


def code_of(handler: Any) -> Any:
    """Return the code that runs when a function, method, partial or object is called; None where it is not Python's."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    code = getattr(handler, "__code__", None)
    return code if code is not None else getattr(handler.__call__, "__code__", None)
