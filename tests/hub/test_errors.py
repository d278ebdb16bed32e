"""What an exception of the client means: whether it may pass, whether nothing was done, whose fault it is."""

from __future__ import annotations

import pytest
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from safe_dtype.hub.errors import CLIENT_ERRORS, TRANSPORT_ERROR, HubError, fault_of, translated


def wrapped(exc: Exception, cause: Exception) -> Exception:
    """Return `exc` with a cause, as `raise ... from` leaves it."""
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("exc", "passing", "definite", "ours", "words"),
    [
        pytest.param(OfflineModeIsEnabled("x"), False, True, False, "HF_HUB_OFFLINE", id="offline"),
        pytest.param(HFValidationError("x"), False, True, True, "no such name", id="name"),
        pytest.param(ValueError("README.md: bad"), False, True, True, "metadata of README.md", id="card"),
        pytest.param(PermissionError(13, "denied", "a/file"), False, True, False, "a/file cannot be", id="disk"),
        pytest.param(ConnectionError("404 Not Found"), False, True, False, "no Xet storage", id="no-xet"),
        pytest.param(ConnectionError("reset"), True, False, False, "connection to the Hub failed", id="xet"),
        pytest.param(TRANSPORT_ERROR("cut"), True, False, False, "connection to the Hub failed", id="http"),
        pytest.param(RuntimeError("lfs"), True, False, False, "connection to the Hub failed", id="lfs"),
        pytest.param(KeyError("oid"), True, False, False, "makes no sense", id="answer"),
    ],
)
def test_without_a_status(exc: Exception, passing: bool, definite: bool, ours: bool, words: str) -> None:
    """An exception without an answer of the Hub."""
    fault = fault_of(exc, "the commit")
    assert (fault.passing, fault.definite, fault.ours) == (passing, definite, ours)
    assert words in fault.happened + fault.advice
    assert fault.status is None


class _Response:
    """What the client hangs on its errors, as far as it is read."""

    def __init__(self, status_code: int, **headers: str) -> None:
        self.status_code, self.headers = status_code, headers


class _StatusError(RuntimeError):
    def __init__(self, response: _Response, server_message: str = "") -> None:
        super().__init__("a text with a secret")
        self.response, self.server_message = response, server_message


@pytest.mark.parametrize(
    ("status", "passing", "definite"),
    [(400, False, True), (403, False, True), (408, True, False), (409, True, False), (412, False, False),
     (413, False, True), (429, True, False), (500, True, False), (503, True, False)],
)  # fmt: skip
def test_by_status(status: int, passing: bool, definite: bool) -> None:
    """A status says whether the request may succeed later, and whether it certainly had no effect."""
    fault = fault_of(_StatusError(_Response(status)), "the commit")
    assert (fault.status, fault.passing, fault.definite) == (status, passing, definite)
    assert fault.happened == f"the Hub answered {status} for the commit"
    assert fault.ours is (status == 400)


def test_the_status_of_a_cause() -> None:
    """The client wraps a failed upload: the status is that of the cause."""
    exc = wrapped(RuntimeError("upload failed"), _StatusError(_Response(503)))
    assert fault_of(exc, "the upload").status == 503


def test_the_words_of_the_server() -> None:
    """Of a server's text one line is shown, without control characters; of the client's own text nothing."""
    fault = fault_of(_StatusError(_Response(400), "no\n such \x1b[31mfile" + "x" * 300), "the commit")
    assert fault.happened.startswith("the Hub answered 400 for the commit: no such [31mfile")
    assert len(fault.happened) < 250
    assert "secret" not in fault.happened


@pytest.mark.parametrize(("header", "seconds"), [("17", 17.0), ("", 0.0), ("Wed, 21 Oct 2026", 0.0), ("-3", 0.0)])
def test_how_long_to_wait(header: str, seconds: float) -> None:
    """Retry-After counts where it is a number of seconds."""
    fault = fault_of(_StatusError(_Response(429, **{"Retry-After": header})), "the commit")
    assert fault.retry_after_seconds == seconds


@pytest.mark.parametrize("kind", CLIENT_ERRORS, ids=lambda kind: kind.__name__)
def test_translated(kind: type[Exception]) -> None:
    """Every exception of the client becomes a HubError that has it as its cause."""

    def call() -> None:
        raise kind("x")

    with pytest.raises(HubError) as error:
        translated("the commit", call)
    assert isinstance(error.value.__cause__, kind)


def test_what_is_not_the_clients() -> None:
    """A mistake in our own code comes through as it is."""
    with pytest.raises(TypeError):
        translated("the commit", lambda: len(3))  # type: ignore[arg-type]
