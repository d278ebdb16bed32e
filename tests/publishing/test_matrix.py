"""Every fault at every request of a publication: the revision is old or whole, the error is true, a re-run ends it."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path

import pytest
from forked import PROCESSES
from publishing.client import httpx, in_child
from publishing.faults import Action
from publishing.loopback import LoopbackHub, call, drop, lose_response
from publishing.scenarios import (
    FAULTS,
    FOR_EVER,
    KINDS,
    STAGED,
    STEPS,
    Scenario,
    after_a_rerun,
    lies,
    outcome,
    prepared,
    problems_of,
    scenarios,
    seen,
)
from publishing.stages import push_alone, written

from safe_dtype.publishing.pushing.journal import read_receipt
from safe_dtype.publishing.release import State, Target

_XET = """
import json, pathlib, sys, tempfile
sys.path.insert(0, sys.argv[1])
from publishing.loopback import LoopbackHub
from publishing.scenarios import problems_of, requests_of, scenarios
wrong, tried = {}, 0
for kind in sys.argv[2:]:
    for scenario in (one for step in requests_of(kind, xet=True) for one in scenarios(kind, step, xet=True)):
        tried += 1
        with tempfile.TemporaryDirectory() as home, LoopbackHub(xet=pathlib.Path(home, "cas")) as hub:
            if problems := problems_of(scenario, hub, pathlib.Path(home, "stage")):
                wrong[str(scenario)] = problems
print(json.dumps([tried, wrong]))
"""


def checked(hub: LoopbackHub, tmp_path: Path, some: list[Scenario]) -> dict[Scenario, list[str]]:
    """Return what is wrong in scenarios, by scenario."""
    found = {one: problems_of(one, hub, tmp_path / str(at)) for at, one in enumerate(some)}
    return {one: problems for one, problems in found.items() if problems}


def third(at: int, kind: str, step: str) -> list[Scenario]:
    """Return every third scenario of a request, each fault once or for ever by turns, and others at the next request."""
    turn = STEPS.index((kind, step)) + at
    return [one for place, one in enumerate(scenarios(kind, step)) if (place + turn) % 3 == 0]


@pytest.mark.parametrize(("kind", "step"), STEPS, ids=["-".join(one) for one in STEPS])
def test_fault(hub: LoopbackHub, tmp_path: Path, kind: str, step: str, caplog: pytest.LogCaptureFixture) -> None:
    """Old or whole, truly told, nothing lost, one commit after a re-run, and the token is nowhere."""
    for name in ("safe_dtype", "huggingface_hub", httpx.__name__):
        caplog.set_level(logging.DEBUG, logger=name)
    assert checked(hub, tmp_path, third(0, kind, step)) == {}
    assert hub.token not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "step"), STEPS, ids=["-".join(one) for one in STEPS])
def test_the_other_faults(hub: LoopbackHub, tmp_path: Path, kind: str, step: str) -> None:
    """The same for the other two thirds."""
    assert checked(hub, tmp_path, third(1, kind, step) + third(2, kind, step)) == {}


def test_there_are_enough() -> None:
    """Every fault meets every request, once and for ever; a third of that is in every run of the tests."""
    tried = {one for step in STEPS for at in (0, 1, 2) for one in third(at, *step)}
    assert tried == {one for step in STEPS for one in scenarios(*step)}
    assert sum(len(third(0, *step)) for step in STEPS) >= 200
    assert {(one.fault, one.times) for step in STEPS for one in third(0, *step)} == {
        (fault, times) for fault in FAULTS for times in (1, FOR_EVER)
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fault_by_xet(hub: LoopbackHub, project_root: Path, kind: str) -> None:
    """The same where large files take the way of Xet."""
    tried, wrong = json.loads(in_child(hub, _XET, project_root / "tests", kind, xet=True))
    assert wrong == {}
    assert tried >= 180


@pytest.mark.parametrize(
    ("kind", "step", "state", "exit_status"),
    [
        ("new", "head", State.NOT_STARTED, 3),
        ("new", "create", State.NOT_STARTED, 3),
        ("existing", "tree", State.NOT_STARTED, 3),
        ("existing", "may-write", State.NOT_STARTED, 3),
        ("existing", "modes", State.NOT_PUBLISHED, 4),
        ("existing", "bytes", State.NOT_PUBLISHED, 4),
        ("existing", "card", State.NOT_PUBLISHED, 4),
        ("existing", "commit", State.NOT_PUBLISHED, 4),
        ("existing", "read-small", State.UNVERIFIED, 7),
        ("new", "read-header", State.UNVERIFIED, 7),
        ("new", "show", State.PRIVATE, 9),
        ("branch", "look", State.NOT_STARTED, 3),
        ("branch", "temporary", State.NOT_PUBLISHED, 4),
        ("branch", "read-header", State.NOT_PUBLISHED, 4),
        ("branch", "name", State.NOT_PUBLISHED, 4),
        ("branch", "tidy", State.PUBLISHED, 0),
    ],
)
def test_states(hub: LoopbackHub, tmp_path: Path, kind: str, step: str, state: State, exit_status: int) -> None:
    """A request that is never allowed ends in the state of its step."""
    folder, target = written(tmp_path / "stage", STAGED), prepared(hub, kind)
    Scenario(kind, step, "403", FOR_EVER).order(hub)
    assert outcome(folder, target, hub)[0] is state
    assert state.exit_status == exit_status


@pytest.mark.parametrize("action", [drop, lose_response], ids=["not-landed", "landed"])
def test_nobody_knows(hub: LoopbackHub, tmp_path: Path, action: Action) -> None:
    """Where a commit fails and nothing can be read any more, that is what is said, and a re-run finds out."""
    folder, target = written(tmp_path / "stage", STAGED), prepared(hub, "existing")
    before = seen(hub, target)
    hub.fault("GET", "/revision/main", call(lambda _: None), times=2)  # the plan, and whether the base may be opened
    hub.fault("GET", "/revision/main", drop, times=FOR_EVER)
    hub.fault("POST", "/commit/", action)
    assert outcome(folder, target, hub)[0] is State.UNKNOWN
    assert (seen(hub, target) == before) is (action is drop)
    hub.clear_faults()
    assert list(after_a_rerun(hub, folder, target, before)) == []


@pytest.mark.parametrize("kind", ["new", "branch"])
def test_killed(hub: LoopbackHub, tmp_path: Path, kind: str) -> None:
    """Killed just after any request that changes the Hub: old or whole, the receipt is true, a re-run ends it."""
    requests = undisturbed(hub, kind, tmp_path / "whole")
    places = [at for at, method in enumerate(requests) if method != "GET"]
    assert all_killed(places, True, hub, kind, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_anywhere(hub: LoopbackHub, tmp_path: Path, kind: str, after: bool) -> None:
    """The same just before and just after every request."""
    requests = undisturbed(hub, kind, tmp_path / "whole")
    assert all_killed(range(len(requests)), after, hub, kind, tmp_path) == {}


def undisturbed(hub: LoopbackHub, kind: str, folder: Path) -> list[str]:
    """Return the methods of the requests of a publication."""
    target = prepared(hub, kind)
    assert outcome(written(folder, STAGED), target, hub)[0] is State.PUBLISHED
    return [method for method, _ in hub.requests]


def all_killed(
    places: Iterable[int], after: bool, hub: LoopbackHub, kind: str, tmp_path: Path
) -> dict[int, list[str]]:
    """Kill one publication at each of these requests; return what was wrong, by request."""
    wrong = {}
    for at in places:
        target, folder = prepared(hub, kind), written(tmp_path / str(at), STAGED)
        before = seen(hub, target)
        assert killed_at(at, after, hub, folder, target)
        receipt = read_receipt(folder)
        problems = list(lies(hub, target, State.UNKNOWN if receipt is None else receipt.state, before))
        if problems := [*problems, *after_a_rerun(hub, folder, target, before)]:
            wrong[at] = problems
    return wrong


def killed_at(at: int, after: bool, hub: LoopbackHub, folder: Path, target: Target) -> bool:
    """Push in a process of its own, and kill it at its request number `at`; return whether it died of that."""
    arguments = (hub.url, hub.token, str(folder), target.repo, target.revision)
    process = PROCESSES.Process(target=push_alone, args=arguments)
    asked = count()

    def kill(_: LoopbackHub) -> None:
        if next(asked) == at:
            while process.pid is None:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)  # not waited for here: two threads that wait lose the exit status

    hub.fault("*", "", call(kill, after=after), times=FOR_EVER)
    process.start()
    process.join(60)
    hub.clear_faults()
    return process.exitcode == -signal.SIGKILL
