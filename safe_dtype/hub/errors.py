"""What can go wrong between the client and the Hub, in our words. Nothing else knows the client's exceptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from huggingface_hub import errors as hub

T = TypeVar("T")

# The first base of the client's own error is the base of all errors of its HTTP library, which was httpx and is httpx2.
# RuntimeError: an upload to LFS that failed. ConnectionError (an OSError): Xet. ValueError and KeyError: an answer that
# is not what the API promises, or a request that the client itself refuses.
TRANSPORT_ERROR: type[Exception] = hub.HfHubHTTPError.__bases__[0]
CLIENT_ERRORS = (TRANSPORT_ERROR, RuntimeError, OSError, ValueError, KeyError, hub.SafetensorsParsingError)

# What a config of transformers raises over a value that it refuses.
InvalidConfigError = hub.StrictDataclassError

Missing = Literal["", "repository", "revision", "file"]

_LOG_IN = "log in with `hf auth login` as somebody who may, or name another repository"
_PASSING = frozenset({408, 409, 425, 429})  # and 5xx
_DOUBTFUL = frozenset({408, 409, 412, 425, 429})  # the rest of 4xx says that nothing was done

_ADVICE = {
    400: "mend what it names, then push again",
    401: "log in with `hf auth login`; a token needs the right to write",
    403: "ask its owner for access, use a token with the right to write, or name a repository of your own",
    409: "wait until nobody else writes to it, then push again",
    412: "look at what changed there, then push again, with --rebase to keep both",
    413: "split the weights into smaller shards",
    429: "wait five minutes, then try again: what has arrived is not sent again",
}


@dataclass(eq=False)
class HubError(Exception):
    """A request to the Hub that failed. Whoever asked turns it into an error of its own: no user sees it."""

    happened: str  # without the client's own text
    advice: str  # the next step
    status: int | None = None  # of HTTP, where there was an answer
    missing: Missing = ""  # what is not there
    definite: bool = False  # whether the request certainly had no effect
    ours: bool = False  # whether the staged folder is at fault
    retry_after_seconds: float = 0  # how long the Hub asks to wait, 0 where it does not

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later."""
        if self.status is not None:
            return self.status in _PASSING or self.status >= 500
        return not self.definite


def translated(what: str, call: Callable[[], T]) -> T:
    """Return what `call` returns, which asks the client for `what`.

    Raises:
        HubError: In place of every exception of the client.
    """
    try:
        return call()
    except CLIENT_ERRORS as exc:
        raise fault_of(exc, what) from exc


def fault_of(exc: Exception, what: str) -> HubError:
    """Return what an exception of the client means, where it was asked for `what`."""
    if isinstance(exc, ValueError) and "README.md" in str(exc):
        happened = "the Hub does not accept the metadata of README.md"
        return HubError(happened, "mend its YAML block, then push again", definite=True, ours=True)
    if (status := _status(exc)) is not None:
        return _answered(exc, status, what)
    return _refused_by_the_client(exc) or _unanswered(exc, what)


def _refused_by_the_client(exc: Exception) -> HubError | None:
    """Say why nothing was sent; None where something may have been."""
    if isinstance(exc, hub.OfflineModeIsEnabled):
        return HubError("the client is offline (HF_HUB_OFFLINE is set)", "unset it, then try again", definite=True)
    if isinstance(exc, hub.HFValidationError):
        return HubError("the Hub allows no such name", "name a repository as org/name", definite=True, ours=True)
    if isinstance(exc, OSError) and exc.filename is not None and not isinstance(exc, hub.LocalEntryNotFoundError):
        happened = f"{exc.filename} cannot be read or written ({exc.strerror})"
        return HubError(happened, "see to the disk, then push again", definite=True)
    return None


def _unanswered(exc: Exception, what: str) -> HubError:
    if isinstance(exc, ConnectionError) and re.search(r"\b404\b", str(exc)):
        # hf_xet has no fallback: with it installed, everything goes to Xet.
        advice = "set HF_HUB_DISABLE_XET=1 if this server has none, then push again"
        return HubError("the Hub has no Xet storage for it", advice, definite=True)
    if isinstance(exc, (TRANSPORT_ERROR, OSError, RuntimeError)):
        happened = f"the connection to the Hub failed at {what} ({type(exc).__name__})"
        return HubError(happened, "check the network, then try again: what has arrived is not sent again")
    # An answer that is no JSON, from a proxy for one, says nothing about whether the request was carried out.
    return HubError(f"the Hub gave an answer at {what} that makes no sense ({type(exc).__name__})", "try again")


def _answered(exc: Exception, status: int, what: str) -> HubError:
    missing = _missing(exc)
    happened = f"the Hub answered {status} for {what}{_server_message(exc)}"
    advice = _ADVICE.get(status, "try again later; what has arrived is not sent again")
    if missing == "repository" and status == 401:
        missing = ""  # it may well be there: nobody is logged in
    elif missing or status == 404:
        advice = _LOG_IN
    if isinstance(exc, hub.GatedRepoError):
        missing, advice = "", "ask for access on its page, then try again"
    definite = 400 <= status < 500 and status not in _DOUBTFUL
    return HubError(
        happened, advice, status=status, missing=missing, definite=definite, ours=status == 400,
        retry_after_seconds=_retry_after(exc),
    )  # fmt: skip


def _missing(exc: Exception) -> Missing:
    if isinstance(exc, hub.RevisionNotFoundError):
        return "revision"
    if isinstance(exc, hub.EntryNotFoundError):
        return "file"
    return "repository" if isinstance(exc, hub.RepositoryNotFoundError) else ""


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """Give the exception and its causes: the client wraps a failed upload to LFS in a RuntimeError."""
    link: BaseException | None = exc
    while link is not None:
        yield link
        link = link.__cause__


def _status(exc: Exception) -> int | None:
    for link in _chain(exc):
        if (response := getattr(link, "response", None)) is not None:
            return int(response.status_code)
    return None


def _server_message(exc: Exception) -> str:
    """Return the server's own words, one line of them."""
    text = getattr(exc, "server_message", None) or ""
    line = " ".join(re.sub(r"[^ -~]", " ", str(text)).split())[:200]
    return f": {line}" if line else ""


def _retry_after(exc: Exception) -> float:
    response = getattr(exc, "response", None)
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d{1,5}", asked) else 0.0
