"""Small questions that a load asks before it starts: what a card says, and what a small file holds. Asked once.

The answer is whole within 3 s, or there is none: a server that trickles, or never ends, holds no load up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, and exported lazily

from ..store import parse_json
from .errors import HubError, translated

T = TypeVar("T")

_TIMEOUT_SECONDS = 3.0  # for each answer, from the question to its last byte
_MOST_JSON_BYTES = 2**24  # of a variant's evidence, which has a digest and a few figures for each file
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding")

Token = str | bool | None  # as `from_pretrained` takes it


@dataclass(frozen=True, slots=True)
class Described:
    """What the Hub says of a repository at one revision."""

    commit: str | None
    card: Any  # the YAML of its card, as a mapping; None where it has none


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A JSON file of a repository."""

    content: Any
    commit: str  # that it was read at; empty where the server does not say


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file of a repository, whole."""

    content: bytes
    commit: str  # that it was read at; empty where the server does not say


def is_offline() -> bool:
    """Whether the client was told to ask nobody (HF_HUB_OFFLINE)."""
    return bool(constants.is_offline_mode())


def described(repo: str, *, revision: str | None, token: Token) -> Described:
    """Return the commit that `revision` is at, and the card.

    Raises:
        HubError: If the Hub does not answer within 3 s, or with something else.
    """
    answer = _asked(
        "the card",
        lambda: HfApi().model_info(
            repo, revision=revision, token=token, timeout=_TIMEOUT_SECONDS, expand=["cardData", "sha"]
        ),
    )
    return Described(answer.sha, answer.card_data)


def json_file(repo: str, path: str, *, token: Token) -> JsonFile:
    """Return a JSON file of the main branch.

    Raises:
        HubError: If the Hub does not answer within 3 s, has no such file, or it is not JSON.
    """

    def read() -> JsonFile:
        file = _read(repo, path, _MOST_JSON_BYTES, token)
        return JsonFile(parse_json(file.content), file.commit)

    return _asked(path, read)


def small_file(repo: str, path: str, *, most_bytes: int, token: Token) -> SmallFile | None:
    """Return a file of the main branch; None where there is no such file. It is read no further than `most_bytes`.

    Raises:
        HubError: If the file is not here within 3 s, there is no such repository, or the file is larger.
    """
    try:
        return _asked(path, lambda: _read(repo, path, most_bytes, token))
    except HubError as error:
        if error.missing == "file":
            return None
        raise


def _asked(what: str, ask: Callable[[], T]) -> T:
    """Return what `ask` returns within 3 s, as `translated` does.

    The client's own limit is for each piece that arrives, be it a byte of a header. So the question is asked in a thread,
    which is left alone where it takes longer; it keeps no process from ending.
    """
    answers: list[T] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as exc:  # noqa: BLE001  # raised again by whoever waits
            problems.append(exc)

    def answer() -> T:
        thread = threading.Thread(target=run, daemon=True, name="safe_dtype asks the Hub")
        thread.start()
        thread.join(_TIMEOUT_SECONDS)
        if problems:
            raise problems[0]
        if not answers:
            raise TimeoutError(f"it did not arrive within {_TIMEOUT_SECONDS:.0f} s")
        return answers[0]

    return translated(what, answer)


def _read(repo: str, path: str, most_bytes: int, token: Token) -> SmallFile:
    # A few compressed bytes may be gigabytes, so none are asked for, and none are taken.
    headers = build_hf_headers(token=token) | {"Accept-Encoding": "identity"}
    with get_session().stream("GET", hf_hub_url(repo, path), headers=headers, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status_code >= HTTPStatus.BAD_REQUEST:
            # The client would read all of the text of an error. What is missing stands in the headers.
            remaining = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_BODY}
            hf_raise_for_status(
                type(answer)(answer.status_code, headers=remaining, content=b"", request=answer.request)
            )
        if (encoding := answer.headers.get("Content-Encoding", "identity")) != "identity":
            raise ValueError(f"it is compressed ({encoding[:20]})")
        content = _bytes_of(answer, most_bytes)
        if len(content) > most_bytes:
            raise ValueError(f"it is larger than {most_bytes:,} bytes")
        commits = [response.headers.get("X-Repo-Commit") for response in (*answer.history, answer)]
    return SmallFile(content, next(filter(None, commits), ""))


def _bytes_of(answer: Any, most_bytes: int) -> bytes:
    """Return the bytes as they are sent, and stop soon after `most_bytes` of them, or after 3 s."""
    content, latest = bytearray(), time.monotonic() + _TIMEOUT_SECONDS
    for piece in answer.iter_raw():
        content += piece
        if time.monotonic() > latest:  # nobody waits for it any more
            raise TimeoutError(f"it did not arrive within {_TIMEOUT_SECONDS:.0f} s")
        if len(content) > most_bytes:
            break
    return bytes(content)
