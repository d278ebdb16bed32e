"""Which exceptions are let through without an experiment."""

from __future__ import annotations

import re
from types import TracebackType

from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ...processes.handler_exceptions import is_of_a_signal
from ..classify import links_of, text_of
from ..families.refused import is_lost, is_vetoed_text
from .hook_errors import is_raised_by_a_hook

# By name, for some are of libraries that may not be here. Memory, lost devices, communication; what ends a loop; what a
# filter of the user's makes of a warning; ours, which quote a failure that was cured.
_VETOED_TYPES = frozenset({
    "MemoryError", "OutOfMemoryError", "OutOfResources", "RecursionError", "AcceleratorError", "DistError",
    "DistBackendError", "DistNetworkError", "DistStoreError", "ConnectionError", "TimeoutError", "InterruptedError",
    "HfHubHTTPError", "RequestException", "HTTPError", "StopIteration", "StopAsyncIteration", "Warning",
    "SafeDtypeError", "RestartNeededError",
})  # fmt: skip
# Exceptions by which callers leave a forward on purpose.
_WAY_OUT = re.compile(
    r"^_*(?:Stop|Cancel|Interrupt|Abort|Exit|EarlyExit)|(?:Cancel(?:l)?ed|Interrupt|EarlyExit)(?:Error|Exception)?$"
)
_CALLERS = (LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, BaseStreamer)


def is_vetoed(exc: BaseException) -> bool:
    """Whether no dtype can have to do with `exc`, or what raised it must not run again."""
    return is_raised_by_a_hook(exc) or any(_is_vetoed(link) for link in links_of(exc))


def leaves_on_purpose(exc: BaseException) -> bool:
    """Whether `exc` is how the caller left a forward: what the step did until then is wanted."""
    return not isinstance(exc, Exception) or any(_WAY_OUT.search(base.__name__) for base in type(exc).__mro__[:-2])


def passes_through_callers(traceback: TracebackType | None) -> bool:
    """Whether an exception comes from a processor, criteria or a streamer, which see nothing of the model's dtype."""
    while traceback is not None:
        if isinstance(traceback.tb_frame.f_locals.get("self"), _CALLERS):
            return True
        traceback = traceback.tb_next
    return False


def _is_vetoed(link: BaseException) -> bool:
    names = {base.__name__ for base in type(link).__mro__}
    if not isinstance(link, Exception) or names & _VETOED_TYPES or leaves_on_purpose(link):
        return True
    if is_of_a_signal(link):
        return True
    if isinstance(link, OSError) and link.errno is not None:  # of the operating system, and not only called so
        return True
    text = text_of(link)
    return is_lost(text) or is_vetoed_text(text)
