"""The questions that a load asks before it starts, over real HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from publishing.loopback import LoopbackHub, drop, status, truncate

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
    from huggingface_hub import constants

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
