"""What can go wrong in a publication, and the rules that must hold whatever does.

A scenario is a kind of target, a request, a fault at it, and how often that comes. What a state may mean is checked
against what the loopback Hub holds.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

from publishing.faults import Action
from publishing.loopback import LoopbackHub, drop, lose_response, status, truncate
from publishing.stages import held, hurried, ours, sharded, whole, written

from safe_dtype.errors import PublishError
from safe_dtype.publishing.pushing.journal import read_receipt
from safe_dtype.publishing.pushing.push import push
from safe_dtype.publishing.release import State, Target

FOR_EVER = 10**9
STAGED = sharded()
_STALE = "model.safetensors"  # would be loaded instead of the shards
_NUMBERS = count()

FAULTS: dict[str, Action] = {
    **{str(code): status(code) for code in (500, 503, 403, 404, 409, 412, 429)},
    "dropped": drop,
    "lost": lose_response,
    "truncated": truncate,
}
_COMMON = {
    "head": ("GET", r"/revision/main$"),
    "tree": ("GET", r"/tree/"),
    "card": ("POST", r"validate-yaml"),
    "modes": ("POST", r"/preupload/"),
    "commit": ("POST", r"/commit/"),
    "read-small": ("GET", r"/resolve/.*/README.md"),
    "read-header": ("GET", r"^/lfs/"),
}
_BY_LFS = {
    "batch": ("POST", r"/objects/batch"),
    "bytes": ("PUT", r"^/lfs/"),
    "arrived": ("POST", r"^/lfs/.*/verify"),
}
_BY_XET = {"xet": ("GET", r"/xet-write-token/")}
_KINDS = {
    "new": {"create": ("POST", r"/repos/create"), "show": ("PUT", r"/settings")},
    "existing": {"may-write": ("GET", r"/auth-check/write")},
    "branch": {
        "may-write": ("GET", r"/auth-check/write"),
        "look": ("GET", r"/revision/fp16$"),
        "temporary": ("POST", r"/branch/safe-dtype"),
        "name": ("POST", r"/branch/fp16"),
        "tidy": ("DELETE", r"/branch/safe-dtype"),
    },
}


@dataclass(frozen=True)
class Scenario:
    """One thing that goes wrong."""

    kind: str  # of target: "new", "existing", "branch"
    step: str
    fault: str
    times: int
    xet: bool = False

    @property
    def request(self) -> tuple[str, str]:
        """The method, and a regex of the path."""
        return requests_of(self.kind, xet=self.xet)[self.step]

    def order(self, hub: LoopbackHub) -> None:
        """Let it go wrong from now on."""
        hub.fault(*self.request, FAULTS[self.fault], times=self.times)

    def was_met(self, requests: Iterable[tuple[str, str]]) -> bool:
        """Whether the request was made at all."""
        method, path = self.request
        return any(one == method and re.search(path, its_path) for one, its_path in requests)


def requests_of(kind: str, *, xet: bool = False) -> dict[str, tuple[str, str]]:
    """Return the requests of a publication to one kind of target, by step."""
    return {**_COMMON, **(_BY_XET if xet else _BY_LFS), **_KINDS[kind]}


KINDS = tuple(_KINDS)
STEPS = [(kind, step) for kind in KINDS for step in requests_of(kind)]


def scenarios(kind: str, step: str, *, xet: bool = False) -> list[Scenario]:
    """Return all of one request: every fault, once and for ever."""
    return [Scenario(kind, step, fault, times, xet) for fault, times in product(FAULTS, (1, FOR_EVER))]


def prepared(hub: LoopbackHub, kind: str) -> Target:
    """Return a target of its own, in the state that its kind says, on a Hub that knows no file yet."""
    repo = f"org/model-{next(_NUMBERS)}"
    hub.large.clear()
    if kind != "new":
        hub.push(repo, whole())
    return Target(repo, "fp16" if kind == "branch" else "main", public=True)


def seen(hub: LoopbackHub, target: Target) -> dict[str, bytes] | None:
    """Return what others would load at the target, None where there is nothing."""
    if target.repo not in hub.repositories or target.revision not in hub.branches(target.repo):
        return None
    found = hub.files(target.repo, target.revision)
    return None if set(found) == {".gitattributes"} else found


def lies(hub: LoopbackHub, target: Target, state: State, before: dict[str, bytes] | None) -> Iterator[str]:
    """Give everything in which `state` is not true of what the Hub holds."""
    found = seen(hub, target)
    is_whole = found is not None and STAGED.items() <= found.items() and _STALE not in found
    if found != before and not is_whole:
        yield "half of it is visible"
    if is_whole and state in (State.NOT_STARTED, State.NOT_PUBLISHED, State.CONFLICT):
        yield "it is there"
    if not is_whole and state in (State.PUBLISHED, State.UNVERIFIED, State.PRIVATE):
        yield "it is not there"
    if state is State.BROKEN:
        yield "nothing was broken"
    private = target.repo in hub.repositories and hub.is_private(target.repo)
    if state is State.PUBLISHED and private:
        yield "it is still private"
    made_here = target.repo in hub.repositories and before is None and target.revision == "main"
    if made_here and not private and state not in (State.PUBLISHED, State.PRIVATE):
        yield "it is public too early"


def outcome(folder: Path, target: Target, hub: LoopbackHub) -> tuple[State, str]:
    """Push; return how that ended, and all that the error says, causes included. Any other error comes through."""
    try:
        return push(folder, target, api=hurried(hub)).state, ""
    except PublishError as exc:
        return State(exc.state), "".join(traceback.format_exception(exc))


def problems_of(scenario: Scenario, hub: LoopbackHub, folder: Path) -> list[str]:
    """Push under the fault, then without it; return what was wrong."""
    target = prepared(hub, scenario.kind)
    before, made = seen(hub, target), len(hub.requests)
    written(folder, STAGED)
    scenario.order(hub)
    state, said = outcome(folder, target, hub)
    problems = list(lies(hub, target, state, before))
    receipt = read_receipt(folder)
    if state is not State.NOT_STARTED and (receipt is None or receipt.state is not state):
        problems.append(f"the receipt says {receipt and receipt.state}")
    problems += ["the token is told"] * (hub.token in said)
    problems += ["the fault was never met"] * (not scenario.was_met(hub.requests[made:]))
    hub.clear_faults()
    return [f"{state}: {one}" for one in (*problems, *after_a_rerun(hub, folder, target, before))]


def after_a_rerun(
    hub: LoopbackHub, folder: Path, target: Target, before: dict[str, bytes] | None
) -> Iterator[str]:  # fmt: skip
    """Push once more, with nothing in the way; give what is wrong then."""
    state, said = outcome(folder, target, hub)
    if state is not State.PUBLISHED:
        yield f"again: {state}: {said[-300:]}"
        return
    yield from lies(hub, target, state, before)
    if (commits := len(ours(hub, target.repo, target.revision))) != 1:
        yield f"{commits} commits"
    if left := [one for one in hub.branches(target.repo) if one.startswith("safe-dtype")]:
        yield f"left over: {left}"
    if held(folder) != STAGED:
        yield "the folder was touched"
