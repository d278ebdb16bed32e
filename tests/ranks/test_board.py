"""Notes between ranks: everybody reads the same, and nobody waits for ever."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
import torch
import torch.distributed as dist
import torch.utils.data

from safe_dtype.errors import PeerLostError
from safe_dtype.processes.rank_process import MARK
from safe_dtype.ranks import Board, current_board

from .processes import Launch, run_ranks


def boards(size: int) -> list[Board]:
    """Return the board of one job as each of its ranks sees it."""
    store = dist.HashStore()
    return [Board(rank, size, dist.PrefixStore("job", store)) for rank in range(size)]


def test_notes_are_read_by_all() -> None:
    """A note is there for everybody, and the first one that settles something holds."""
    first, second = boards(2)
    first.post("a", {"x": 1})
    assert second.read("a") == {"x": 1}
    assert second.read("b") is None
    assert [second.settle("c", "two"), first.settle("c", "one")] == ["two", "two"]


def test_all_notes_come_together() -> None:
    """Every rank gets the notes of all, those that are equal together."""
    with ThreadPoolExecutor(4) as threads:
        gathered = list(threads.map(lambda board: board.gather("n", board.rank % 2, 20), boards(4)))
    assert all(dict(groups) == {(0, 2): 0, (1, 3): 1} for groups in gathered)


def test_a_rank_that_stays_away() -> None:
    """After the time limit the others go on, and who comes late reads what they have gone on with."""
    first, second, late = boards(3)
    started = monotonic()
    with ThreadPoolExecutor(2) as threads:
        gathered = list(threads.map(lambda board: board.gather("n", board.rank, 0.3), (first, second)))
    assert 0.3 <= monotonic() - started < 5
    assert gathered == [(((0,), 0), ((1,), 1))] * 2
    assert late.gather("n", 2, 20) == gathered[0]


def test_notes_left_on_the_way() -> None:
    """A note can be left without waiting, and those that were left until now can be read."""
    first, second = boards(2)
    first.leave("n", "a")
    assert second.left("n") == (((0,), "a"),)
    second.leave("n", "a")
    assert first.left("n") == (((0, 1), "a"),)


def test_a_store_that_is_gone() -> None:
    """A rank that cannot ask the store any more says so, and is not left waiting."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)
    board = Board(1, 2, client)
    board.post("a", 1)
    del server
    with pytest.raises(PeerLostError, match="the store of this job does not answer"):
        board.wait("b", 60)


def test_a_job_of_one_has_no_board() -> None:
    """Without a launcher and without a process group there is nobody to leave notes for."""
    assert current_board() is None


class Boards(torch.utils.data.Dataset[str]):
    """A data set of which each value is the board of the process that makes it."""

    def __len__(self) -> int:
        """One value."""
        return 1

    def __getitem__(self, index: int) -> str:
        """Return it."""
        return str(current_board())


LOOKS = "from safe_dtype.ranks import current_board; print(current_board())"


def board_after_its_children() -> dict[str, str]:
    """Start processes that look for a board before this rank does; return what each of them has."""
    boards = {}
    for method in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Boards(), num_workers=1, multiprocessing_context=method)
        boards[method] = next(iter(loader))[0]
    boards["subprocess"] = subprocess.run(
        [sys.executable, "-c", LOOKS], capture_output=True, text=True, check=True
    ).stdout.strip()
    return {**boards, **at_last()}


def board_after_unknown_child() -> dict[str, str]:
    """On rank 1 start a process that cannot know that a rank has started it; return the boards."""
    if os.environ["RANK"] == "0":
        return at_last()
    os.environ.pop(MARK, None)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(current_board()).encode())
        time.sleep(60)
    board = os.read(reader, 1000).decode()
    boards = {"child": board, **at_last()}
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return boards


def at_last() -> dict[str, str]:
    """Return the board of this rank, when the other one has come as well."""
    board = current_board()
    if board is not None:
        board.gather("all are here", None, 30)
        if board.rank == 0:
            board.wait("end", 30)  # the store ends with rank 0
        else:
            board.post("end", True)
    return {"rank": str(board)}


@pytest.mark.slow
def test_processes_that_a_rank_has_started() -> None:
    """They have the launcher's variables as well, and do not take the place of the rank."""
    afresh = {None: {"PYTHONHASHSEED": "0"}}  # a process that was forked may not have all kinds of children
    launch = Launch(joins=False, seconds=120, environments=afresh)
    boards = run_ranks(board_after_its_children, 2, launch=launch)
    nothing = dict.fromkeys(("fork", "spawn", "subprocess"), "None")
    assert boards == [{**nothing, "rank": f"Board(rank={rank}, size=2)"} for rank in (0, 1)]


def test_a_process_that_came_before_its_rank() -> None:
    """A process that cannot know better takes the place of the rank that has started it, which takes it back."""
    boards = run_ranks(board_after_unknown_child, 2, launch=Launch(joins=False))
    first, second = (f"Board(rank={rank}, size=2)" for rank in (0, 1))
    assert boards == [{"rank": first}, {"child": second, "rank": second}]


def test_the_notes_of_a_large_job() -> None:
    """They fit into the 8 MiB that a value of a TCPStore may have, though no two are alike."""
    size, store, chance = 3000, dist.HashStore(), random.Random(0)
    for rank in range(size):
        note = [("the verdict on an operation in one dtype, with its reason", chance.random()) for _ in range(50)]
        Board(rank, size, store).leave("n", note)
    assert len(store.get("n/all")) < 2**23
    assert len(Board(0, size, store).left("n")) == size
