"""The receipt beside a staged folder: written before every step that others could see, and read by the next run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from publishing.loopback import LoopbackHub, call
from publishing.stages import REPO, held, hurried, sharded, whole, written

from safe_dtype.errors import NotPublishableError, PublishError
from safe_dtype.hub.remote_files import FileDigest
from safe_dtype.publishing.pushing.journal import Journal, read_receipt, receipt_for, receipt_path
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import Receipt, State, Target

PUBLIC = Target(REPO, public=True)
RECEIPT = Receipt(PUBLIC, "0" * 16, State.NOT_STARTED, files={"config.json": FileDigest(2, "a", "b")})


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A staged folder."""
    return written(tmp_path / "stage", sharded())


def test_the_receipt_tells_how_far_it_came(hub: LoopbackHub, stage: Path) -> None:
    """Before others could see a thing, the receipt beside the folder says that it may be so."""
    seen: list[State] = []

    def look(_: LoopbackHub) -> None:
        receipt = read_receipt(stage)
        assert receipt is not None
        seen.append(receipt.state)

    for method, path in (("POST", "/preupload/"), ("POST", "/commit/"), ("GET", "/resolve/"), ("PUT", "/settings")):
        hub.fault(method, path, call(look))
    receipt = push(stage, PUBLIC, api=hurried(hub))
    assert seen == [State.NOT_PUBLISHED, State.UNKNOWN, State.UNVERIFIED, State.PRIVATE]
    assert read_receipt(stage) == receipt
    assert receipt_path(stage).parent == stage.parent
    assert held(stage) == sharded()


def test_a_receipt_that_cannot_be_written(hub: LoopbackHub, stage: Path) -> None:
    """Without a receipt nothing is sent."""
    hub.push(REPO, whole())
    receipt_path(stage).mkdir()
    with pytest.raises(PublishError, match="receipt"):
        push(stage, PUBLIC, api=hurried(hub))
    assert not [path for method, path in hub.requests if method != "GET"]


def test_it_comes_back(stage: Path) -> None:
    """What was noted is read back equal, and replaces what was there before."""
    journal = Journal(stage, RECEIPT)
    journal.note(State.NOT_PUBLISHED)
    receipt = journal.note(State.PUBLISHED, oid="c" * 40, deleted=("old.bin",), note="there")
    assert read_receipt(stage) == receipt == journal.receipt
    assert [path.name for path in stage.parent.iterdir() if "receipt" in path.name] == ["stage.receipt.json"]


@pytest.mark.parametrize("target", [Target("org/another"), Target(REPO, "v1")], ids=str)
def test_about_another_target(stage: Path, target: Target) -> None:
    """A receipt counts for its own repository and revision only; whether it is public makes no difference."""
    Journal(stage, RECEIPT).note(State.PUBLISHED)
    assert receipt_for(stage, target) is None
    assert receipt_for(stage, Target(REPO)) is not None


def test_closing(stage: Path) -> None:
    """An error that ends a publication is noted, unless nothing was started: then the earlier receipt holds."""
    journal = Journal(stage, RECEIPT)
    before = journal.note(State.PUBLISHED, oid="c" * 40)
    for state in (State.NOT_STARTED, State.CONFLICT):
        with pytest.raises(PublishError), journal.closing():
            raise PublishError(str(state), REPO, "it failed", "nothing", "push again")
        assert (read_receipt(stage) == before) is (state is State.NOT_STARTED)
    receipt = read_receipt(stage)
    assert receipt is not None
    assert (receipt.state, receipt.note, receipt.oid) == (State.CONFLICT, "it failed", "c" * 40)


@pytest.mark.parametrize("text", ["{}", "no json", "[]", json.dumps(RECEIPT.to_dict() | {"schema": "another/1"})])
def test_no_receipt(stage: Path, text: str) -> None:
    """A file that is no receipt of this version is not taken for one."""
    receipt_path(stage).write_text(text)
    with pytest.raises(NotPublishableError, match="no receipt"):
        read_receipt(stage)
