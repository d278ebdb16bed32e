"""Collectives of the program between those of an engine are seen by their number."""

from __future__ import annotations

from safe_dtype.ranks.ddp.other_collectives import OtherCollectives


class Group:
    """Counts collectives."""

    def __init__(self) -> None:
        self.number = 0
        self.others = OtherCollectives(lambda: self.number)

    def window(self, in_forward: int = 0, before_backward: int = 0, after: int = 0, *, tells: bool = True) -> None:
        """Run a forward pass, a backward pass with three reductions, and so many others in between."""
        self.others.mark()
        self.others.look()
        self.number += 1  # buffers
        self.others.mark()
        self.number += in_forward
        self.others.look()
        self.others.forward_ended()
        self.number += before_backward
        if tells:
            self.others.backward_begins()
        self.number += 3
        if tells:
            self.others.mark()
        self.number += after
        self.others.end()


def test_an_engine_alone_is_no_problem() -> None:
    """Neither its broadcasts nor its reductions are others, whether its backward pass is told of or not."""
    for tells in (True, False):
        group = Group()
        group.window(tells=tells)
        group.window(tells=tells)
        assert group.others.problem is None


def test_others_are_seen_wherever_they_run() -> None:
    """In forward, before backward, and after it."""
    for window in ({"in_forward": 1}, {"before_backward": 1}, {"after": 1}):
        group = Group()
        group.window(**window)
        assert group.others.problem is not None


def test_a_window_without_others_takes_it_back() -> None:
    """What is known is of the last window."""
    group = Group()
    group.window(after=1)
    group.window()
    assert group.others.problem is None
