"""Small questions that a load asks before it starts: what a card says, and what a small file holds. Asked once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from huggingface_hub import HfApi, constants, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, and exported lazily

from .errors import HubError, translated

_TIMEOUT_SECONDS = 3.0  # for each of the two answers

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
    answer = translated(
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
        answer: Any = get_session().get(
            hf_hub_url(repo, path), headers=build_hf_headers(token=token), timeout=_TIMEOUT_SECONDS
        )
        hf_raise_for_status(answer)
        commits = (response.headers.get("X-Repo-Commit") for response in (*answer.history, answer))
        return JsonFile(answer.json(), next(filter(None, commits), ""))

    return translated(path, read)


def small_file(repo: str, path: str, *, most_bytes: int, token: Token) -> SmallFile | None:
    """Return a file of the main branch; None where there is no such file. It is read no further than `most_bytes`.

    Raises:
        HubError: If the file is not here within about 3 s, there is no such repository, or the file is larger.
    """

    def read() -> SmallFile:
        content, latest = b"", time.monotonic() + _TIMEOUT_SECONDS
        with get_session().stream(
            "GET", hf_hub_url(repo, path), headers=build_hf_headers(token=token), timeout=_TIMEOUT_SECONDS
        ) as answer:
            if answer.status_code >= HTTPStatus.BAD_REQUEST:
                answer.read()
            hf_raise_for_status(answer)
            for piece in answer.iter_bytes():
                content += piece
                if time.monotonic() > latest:  # the client's own limit is for each piece
                    raise TimeoutError(f"it did not arrive within {_TIMEOUT_SECONDS:.0f} s")
                if len(content) > most_bytes:
                    raise ValueError(f"it is larger than {most_bytes:,} bytes")
            commits = [response.headers.get("X-Repo-Commit") for response in (*answer.history, answer)]
        return SmallFile(content, next(filter(None, commits), ""))

    try:
        return translated(path, read)
    except HubError as error:
        if error.missing == "file":
            return None
        raise
