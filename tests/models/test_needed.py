"""Changes of the whole process last as long as somebody needs them, and no longer."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from safe_dtype.models.needed import Needed, changing, let_go, share


class User:
    """Somebody who needs a change."""


class Change:
    """A change, and how often it was undone."""

    def __init__(self, *users: object) -> None:
        self.undone = 0
        self.needed = Needed(self.undo)
        with changing():
            for user in users:
                self.needed.add(user)

    def undo(self) -> None:
        """Undo it."""
        self.undone += 1


def test_one_user() -> None:
    """It is in force until its user lets go, and undone once."""
    user = User()
    change = Change(user)
    assert (change.undone, change.needed.is_out, change.needed.users()) == (0, False, [user])
    let_go(user)
    let_go(user)
    assert (change.undone, change.needed.is_out, change.needed.users()) == (1, True, [])


def test_two_users() -> None:
    """It is undone when the last of them lets go, in whatever order, and each counts once."""
    for order in ((0, 1), (1, 0)):
        users = User(), User()
        change = Change(users[0], users[1], users[0])
        assert len(change.needed.users()) == 2
        let_go(users[order[0]])
        assert change.undone == 0
        assert change.needed.users() == [users[order[1]]]
        let_go(users[order[1]])
        assert change.undone == 1


def test_a_user_that_dies() -> None:
    """An object that is collected needs nothing; the other one still does."""
    user, other = User(), User()
    change = Change(user, other)
    del user
    gc.collect()
    assert (change.undone, change.needed.users()) == (0, [other])
    del other
    gc.collect()
    assert change.undone == 1


def test_a_user_in_a_cycle() -> None:
    """So is one that refers to itself, as models do, when the collector finds it."""
    user = User()
    user.itself = [user]  # type: ignore[attr-defined]
    change = Change(user)
    del user
    gc.collect()
    assert change.undone == 1


def test_while_torch_compiles() -> None:
    """A user that dies while torch compiles is noticed by the next collection after it: guards need what was seen."""
    users = [User()]
    change = Change(users[0])
    undone_inside = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        users.clear()
        gc.collect()
        gc.collect()
        undone_inside.append(change.undone)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert undone_inside == [0]
    gc.collect()
    assert change.undone == 1


def test_equal_users_are_two() -> None:
    """Who needs it is told by identity: equal objects each need it for themselves."""

    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    first, second = Equal(), Equal()
    change = Change(first, second)
    let_go(first)
    assert change.undone == 0
    let_go(second)
    assert change.undone == 1


def test_changes_of_others_stay() -> None:
    """Who lets go undoes nothing that another needs."""
    user, other = User(), User()
    own, others = Change(user), Change(other)
    let_go(user)
    assert (own.undone, others.undone) == (1, 0)
    let_go(other)


def test_shared() -> None:
    """What the first needs, and only that, the second needs too."""
    user, copied, other = User(), User(), User()
    change, others = Change(user), Change(other)
    share(user, copied)
    assert others.needed.users() == [other]
    let_go(user)
    assert change.undone == 0
    let_go(copied)
    assert change.undone == 1
    let_go(other)


def test_taken_out() -> None:
    """Taken out it is undone though somebody needs it, once."""
    user = User()
    change = Change(user)
    with changing():
        change.needed.take_out()
        change.needed.take_out()
    assert (change.undone, change.needed.is_out) == (1, True)
    let_go(user)
    assert change.undone == 1


def test_one_thread_at_a_time() -> None:
    """While one thread changes something the others wait, and the same thread may begin again inside."""
    inside = [0]
    most = [0]

    def work(_: int) -> None:
        for _ in range(50):
            with changing(), changing():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                threading.Event().wait(1e-5)
                inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert most == [1]


def test_a_user_that_dies_while_another_thread_changes() -> None:
    """Nobody waits: the thread that is at it undoes what is not needed any more when it is done."""
    user = User()
    change = Change(user)
    inside, go_on = threading.Event(), threading.Event()

    def at_it() -> None:
        with changing():
            inside.set()
            assert go_on.wait(60)

    thread = threading.Thread(target=at_it)
    thread.start()
    assert inside.wait(60)
    del user
    gc.collect()
    assert change.undone == 0
    go_on.set()
    thread.join(60)
    assert change.undone == 1


def test_many_threads() -> None:
    """Many users that come and go in many threads leave nothing in force, and nothing undone too soon."""
    too_soon: list[int] = []

    def come_and_go(_: int) -> Change:
        user, other = User(), User()
        change = Change(user)
        share(user, other)
        let_go(user)
        too_soon.append(change.undone)
        del other
        return change

    with ThreadPoolExecutor(8) as pool:
        changes = list(pool.map(come_and_go, range(200)))
    gc.collect()
    with changing():
        pass
    assert set(too_soon) == {0}
    assert {change.undone for change in changes} == {1}
