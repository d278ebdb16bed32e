"""Which line of modelling code ends a graph, and why. The only place that reads the texts and stacks of torch for it.

torch tells it in four ways, and no release in all of them: a stack on the exception (`real_stack`), a stack beside a
reason (`user_stack`), the traceback of an export that ran the model's own Python, and the text alone ("Caused by ...",
"from user code: ..."). They are tried in this order.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from traceback import FrameSummary, extract_tb
from typing import Any

import torch

from ..nouns.record import BreakSite

DATA_DEPENDENT = "data_dependent"  # the values of a tensor decide what is computed, or on how much
PYTHON_SIDE_EFFECT = "python_side_effect"  # Python that leaves no trace in a graph: a log call, a look at the frame
MODEL_BUG = "model_bug"  # an error in the modelling code itself, when a tracer runs it
MISSING_OP = "missing_op"  # there is a graph, and the runtime cannot compute it
OTHER = "other"

# The tracer ran the model's Python, and that raised an exception, which only a later line names.
_OBSERVED = "Observed exception"
_INTERPRETED = "The following operation failed in the TorchScript interpreter."  # the last line says with what
_RAISED = re.compile(r"Developer debug context: (raised exception .+)")

# `gb_type` of torch's `Unsupported`, in lower case (torch/_dynamo/graph_break_registry.json); the same words are the
# first line of a reason that `explain` gives.
_GRAPH_BREAKS = {
    "data-dependent branching": DATA_DEPENDENT,
    "data-dependent branching with non-constant __bool__": DATA_DEPENDENT,
    "data-dependent assertion failed (cannot compile partial graph)": DATA_DEPENDENT,
    "data dependent operator": DATA_DEPENDENT,
    "dynamic shape operator": DATA_DEPENDENT,
    "dynamic shape operator (no meta kernel)": DATA_DEPENDENT,
    "dynamic slicing with tensor arguments": DATA_DEPENDENT,
    "attempted to wrap unbacked symint": DATA_DEPENDENT,
    "attempted to use `torch.nn.functional.one_hot` with data-dependent output shape": DATA_DEPENDENT,
    "unsupported tensor.item() call with capture_scalar_outputs=false": DATA_DEPENDENT,
    "logging.logger method not supported for non-export cases": PYTHON_SIDE_EFFECT,
    "unsupported inspect call": PYTHON_SIDE_EFFECT,
    "attempted to call function marked as skipped": PYTHON_SIDE_EFFECT,
    "attempted to inline function marked as skipped": PYTHON_SIDE_EFFECT,
    "skip calling `torch.compiler.disable()`d function": PYTHON_SIDE_EFFECT,
    "skip inlining `torch.compiler.disable()`d function": PYTHON_SIDE_EFFECT,
    _OBSERVED.lower(): MODEL_BUG,
}
_EXCEPTIONS = {
    "GuardOnDataDependentSymNode": DATA_DEPENDENT,
    "DataDependentOutputException": DATA_DEPENDENT,
    "DynamicOutputShapeException": DATA_DEPENDENT,
    "PendingUnbackedSymbolNotFound": DATA_DEPENDENT,
    "UnsupportedOperatorException": MISSING_OP,
    "NotImplemented": MISSING_OP,  # onnxruntime: no kernel for this dtype
    "InvalidGraph": MISSING_OP,  # onnxruntime: no such type in this operator
    "DispatchError": MISSING_OP,  # torch.onnx: no translation
}
_TEXTS = (
    (re.compile(r"data[- ]dependent|dynamic control flow", re.IGNORECASE), DATA_DEPENDENT),
    (re.compile(r"could not (guard on|extract specialized integer)", re.IGNORECASE), DATA_DEPENDENT),
    (re.compile(r"\b(tensor\.item|aten\._local_scalar_dense|aten\.nonzero|generic_jump)\b", re.IGNORECASE), DATA_DEPENDENT),
    (re.compile(r"logg(er|ing)\b|warnings?\.warn|skip function|marked as skipped|\binspect\b"), PYTHON_SIDE_EFFECT),
    (re.compile(r"NOT_IMPLEMENTED|INVALID_GRAPH|no (ONNX )?decomposition|could not run '.*' with arguments"), MISSING_OP),
)  # fmt: skip
_BUGS = (TypeError, AttributeError, KeyError, IndexError, NameError, ValueError, ZeroDivisionError, AssertionError)

_CAUSED_BY = re.compile(r"Caused by: (?P<code>[^\n]*?)\s+# (?P<file>\S+\.py):(?P<line>\d+) in ")
_IN_A_STACK = re.compile(r'File "(?P<file>[^"\n]+)", line (?P<line>\d+)(?:, in [^\n]*)?(?:\n +(?P<code>[^\n^]+))?')

_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[2])  # a guard wraps the calls of models
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]
_PACKAGES = re.compile(r".*[\\/](?:site|dist)-packages[\\/]")


def kind_of(error: BaseException | str) -> str:
    """Return what kind of obstacle `error` is: by torch's name for it, otherwise by its text.

    Args:
        error: An exception, or the text of a reason of `torch._dynamo.explain`.
    """
    if isinstance(error, str):
        return _kind_of_text(error)
    chain = list(_chain(error))
    for cause in chain:
        if kind := _GRAPH_BREAKS.get(str(getattr(cause, "gb_type", "")).lower()) or _EXCEPTIONS.get(
            type(cause).__name__
        ):
            return kind
    texts = (kind for one in chain if (kind := _kind_of_text(str(one))) != OTHER)
    bug = MODEL_BUG if any(isinstance(one, _BUGS) for one in chain) else OTHER
    return next(texts, bug)


def reason_of(error: BaseException | str) -> str:
    """Return the first line of torch's text that is not empty; where that only announces an exception, with this or this alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "" if isinstance(error, str) else type(error).__name__
    if lines[0] == _OBSERVED and (raised := _RAISED.search(str(error))):
        return f"{_OBSERVED}: {raised[1]}"
    if lines[0] == _INTERPRETED:
        return lines[-1]
    return lines[0]


def sites_of(failure: BaseException | Any) -> tuple[BreakSite, ...]:
    """Return the lines to blame, each once, the most frequent first.

    Args:
        failure: An exception of `torch.compile`, `torch.export` or a runtime, or what `torch._dynamo.explain` returns.
            An exception names one line at most, and none where no model is involved (a missing compiler).
    """
    if isinstance(failure, BaseException):
        site = _site_of_error(failure)
        return (site,) if site else ()
    counted: Counter[BreakSite] = Counter()
    for reason in failure.break_reasons:
        text = str(reason.reason)
        if site := _site(_blamed(reason.user_stack) or _from_text(text), reason_of(text), kind_of(text)):
            counted[site] += 1
    return tuple(replace(site, count=count) for site, count in counted.most_common())


def _kind_of_text(text: str) -> str:
    known = _GRAPH_BREAKS.get(reason_of(text).partition(":")[0].lower())
    return known or next((kind for pattern, kind in _TEXTS if pattern.search(text)), OTHER)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and its causes, the outermost first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = getattr(cause, "inner_exception", None) or cause.__cause__ or cause.__context__


def _site_of_error(error: BaseException) -> BreakSite | None:
    chain = list(_chain(error))
    frames = (
        *(_blamed(getattr(one, "real_stack", None) or ()) for one in chain),
        *(_blamed(_below_torch(one)) for one in chain),
        *(_from_text(str(one)) for one in chain),
    )
    return _site(next((frame for frame in frames if frame), None), reason_of(error), kind_of(error))


def _below_torch(error: BaseException) -> list[FrameSummary]:
    """Return the frames from torch's first one on. Frames above it called torch, and are not to blame."""
    frames = list(extract_tb(error.__traceback__))
    first = next((at for at, frame in enumerate(frames) if _is_in(frame.filename, _TORCH)), len(frames))
    return frames[first:]


def _blamed(frames: Iterable[FrameSummary]) -> FrameSummary | None:
    """Return the innermost frame of modelling code.

    A log call ends inside of `transformers.utils`, a look at a signature inside of the standard library: the line that
    a reader can change is the one that called them.
    """
    foreign = [frame for frame in frames if not _is_machinery(frame.filename)]
    modelling = [frame for frame in foreign if "transformers/utils/" not in Path(frame.filename).as_posix()]
    return next(reversed(modelling or foreign), None)


def _is_machinery(file: str) -> bool:
    if file.startswith("<"):  # "<frozen ...>", "<eval_with_key>": code that is in no file
        return True
    in_library = _is_in(file, _STANDARD_LIBRARY) and not _PACKAGES.match(file)
    return in_library or _is_in(file, _TORCH) or _is_in(file, _OURS)


def _is_in(file: str, folder: str) -> bool:
    return Path(file).is_relative_to(folder)


def _from_text(text: str) -> FrameSummary | None:
    if named := _CAUSED_BY.search(text):
        return FrameSummary(named["file"], int(named["line"]), "", lookup_line=False, line=named["code"])
    stack = [
        FrameSummary(frame["file"], int(frame["line"]), "", lookup_line=False, line=frame["code"] or "")
        for frame in _IN_A_STACK.finditer(text)
    ]
    return _blamed(stack)


def _site(frame: FrameSummary | None, reason: str, kind: str) -> BreakSite | None:
    if frame is None:
        return None
    return BreakSite(_named(frame.filename), frame.lineno or 0, (frame.line or "").strip(), reason, kind)


def _named(file: str) -> str:
    """Return the path from the package on, which is the same on every machine."""
    if packages := _PACKAGES.match(file):
        return Path(file[packages.end() :]).as_posix()
    if not Path(file).is_absolute():
        return Path(file).as_posix()
    roots = [Path(root).resolve() for root in sys.path if Path(file).is_relative_to(Path(root).resolve())]
    closest = max(roots, key=lambda root: len(root.parts), default=Path(file).parent)
    return Path(file).relative_to(closest).as_posix()
