"""The questions that a load asks before it starts, over real HTTP."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from huggingface_hub import constants
from publishing.loopback import LoopbackHub, drop, status, truncate

from safe_dtype.hub import lookup
from safe_dtype.hub.errors import HubError
from safe_dtype.hub.lookup import described, is_offline, json_file, small_file

REPO = "org/model"


def test_described(hub: LoopbackHub) -> None:
    """The commit of the revision, and the card's YAML."""
    first = hub.push(REPO, {"README.md": b"---\nlicense: mit\n---\n# Model\n"})
    answer = described(REPO, revision=None, token=None)
    assert answer.commit == first
    assert answer.card["license"] == "mit"


def test_json_file(hub: LoopbackHub) -> None:
    """The content, and the commit that it was read at."""
    oid = hub.push(REPO, {"a.json": json.dumps({"a": 1}).encode()})
    file = json_file(REPO, "a.json", token=None)
    assert (file.content, file.commit) == ({"a": 1}, oid)


@pytest.mark.parametrize("action", [drop, truncate, status(500), status(404)], ids=["drop", "half", "500", "404"])
def test_no_answer(hub: LoopbackHub, action: Any) -> None:
    """Whatever goes wrong is one error, after one request."""
    hub.push(REPO, {"a.json": b"{}"})
    hub.fault("*", REPO, action, times=99)
    with pytest.raises(HubError):
        json_file(REPO, "a.json", token=None)
    assert len(hub.requests) == 1


def test_no_json(hub: LoopbackHub) -> None:
    """A file that is no JSON is no answer either."""
    hub.push(REPO, {"a.json": b"<html>"})
    with pytest.raises(HubError):
        json_file(REPO, "a.json", token=None)


def test_offline(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline is what the client was told."""
    assert not is_offline()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert is_offline()


def test_small_file(hub: LoopbackHub) -> None:
    """The bytes, and the commit that they were read at; None where the repository has no such file."""
    oid = hub.push(REPO, {"a.json": b"{}"})
    file = small_file(REPO, "a.json", most_bytes=2, token=None)
    assert file is not None
    assert (file.content, file.commit) == (b"{}", oid)
    assert small_file(REPO, "b.json", most_bytes=2, token=None) is None


def test_a_file_that_is_too_large(hub: LoopbackHub) -> None:
    """One byte too many is an error, and so is a repository that is not there."""
    hub.push(REPO, {"a.json": b"[0]"})
    with pytest.raises(HubError):
        small_file(REPO, "a.json", most_bytes=2, token=None)
    with pytest.raises(HubError):
        small_file("org/nowhere", "a.json", most_bytes=2, token=None)


@pytest.mark.parametrize("action", [drop, truncate, status(500), status(401)], ids=["drop", "half", "500", "401"])
def test_no_file(hub: LoopbackHub, action: Any) -> None:
    """Whatever goes wrong is one error, after one request."""
    hub.push(REPO, {"a.json": b"{ }" * 100})
    hub.fault("*", REPO, action, times=99)
    with pytest.raises(HubError):
        small_file(REPO, "a.json", most_bytes=2**20, token=None)
    assert len(hub.requests) == 1


@contextmanager
def sending(pieces: Iterable[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub that answers every question with these bytes, one piece after the other."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):  # whoever asked has gone, or the test is over
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                for piece in pieces:
                    connection.sendall(piece)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(lookup, "_TIMEOUT_SECONDS", 0.3)
    with server:
        yield


def slowly(text: bytes, seconds: float) -> Iterator[bytes]:
    """Give one byte after the other, each before the client's own limit."""
    for one in text:
        time.sleep(seconds)
        yield bytes([one])


OK = b"HTTP/1.1 200 OK\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nX-Error-Code: EntryNotFound\r\n\r\n"
BOMB = gzip.compress(bytes(2**20))


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(lambda: slowly(OK + b"X: " + b"a" * 100, 0.02), id="headers-that-trickle"),
        pytest.param(lambda: itertools.chain([OK], itertools.repeat(b"X: " + b"a" * 1000)), id="headers-without-end"),
        pytest.param(lambda: itertools.chain([OK, b"\r\n"], slowly(b" " * 100, 0.02)), id="a-file-that-trickles"),
        pytest.param(lambda: itertools.chain([OK, b"\r\n"], itertools.repeat(b" " * 2**16)), id="a-file-without-end"),
        pytest.param(lambda: [OK, b"Content-Encoding: gzip\r\n\r\n", BOMB], id="a-file-that-swells"),
    ],
)
def test_an_answer_without_end(pieces: Any, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a server does, there is an error after the seconds that a question may take, and no gigabyte is read."""
    with sending(pieces(), monkeypatch):
        begun = time.monotonic()
        with pytest.raises(HubError):
            small_file(REPO, "a.json", most_bytes=2**20, token=None)
        assert time.monotonic() - begun < 3  # 0.3 s, on a machine that is busy


def test_an_error_without_end(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an error the headers count, so its text is not read: no such file is no such file."""
    with sending(itertools.chain([NOT_FOUND], itertools.repeat(b" " * 2**16)), monkeypatch):
        assert small_file(REPO, "a.json", most_bytes=2**20, token=None) is None


def test_a_card_that_trickles(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Hub says of a repository is waited for no longer either."""
    with sending(slowly(OK + b"X: " + b"a" * 100, 0.02), monkeypatch), pytest.raises(HubError):
        described(REPO, revision=None, token=None)
