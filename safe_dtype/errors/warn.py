"""The only place that warns: at the line of the user's code that led here, not at one of ours or of a library between."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

from .base import SafeDtypeWarning

# Packages whose frames are never the user's line: ours, what we wrap or are called through, Python's machinery.
_LIBRARIES = frozenset((
    "safe_dtype", "transformers", "transformers_modules", "torch", "accelerate", "peft", "sentence_transformers",
    "optimum", "contextlib", "functools", "threading", "concurrent", "importlib", "runpy",
))  # fmt: skip


def warn(text: str) -> None:
    """Warn of something that the caller should change, with `SafeDtypeWarning`, at the user's own line.

    That is the innermost frame outside of safe_dtype, of the libraries it works with, and of Python's machinery. Where
    there is none (a thread that runs a method of the model, our own command) it is the outermost frame. Filters and "once
    a place" hold as for `warnings.warn` called at that line.
    """
    frame = _users_frame(sys._getframe(1))
    names = frame.f_globals
    warnings.warn_explicit(
        text,
        SafeDtypeWarning,
        filename=frame.f_code.co_filename,
        lineno=frame.f_lineno or 1,
        module=names.get("__name__") or "<string>",
        registry=names.setdefault("__warningregistry__", {}),
    )


def _users_frame(frame: FrameType) -> FrameType:
    while _is_librarys(frame) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_librarys(frame: FrameType) -> bool:
    names = frame.f_globals
    module = str(names.get("__name__") or "")
    if module == "__main__":  # `python -m safe_dtype.run` and `python -m torch.distributed.run` are called that, too
        module = str(getattr(names.get("__spec__"), "name", None) or module)
    return module.partition(".")[0] in _LIBRARIES
