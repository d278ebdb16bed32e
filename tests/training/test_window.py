"""Windows: all micro-batches of a step, which are the same however often they are read."""

from __future__ import annotations

from safe_dtype.training.window import windows_of


def test_windows() -> None:
    """Each has as many as asked for, the last one what is left; the last micro-batch of each is known."""
    notes: list[bool | None] = []
    windows = list(windows_of(range(5), 2, notes.append))
    assert [list(window) for window in windows] == [[0, 1], [2, 3], [4]]
    assert notes == [False, True, None, False, True, None, True, None]
    assert [len(window) for window in windows] == [2, 2, 1]


def test_what_is_taken_out_of_a_batch_comes_again() -> None:
    """A loop that pops the labels can run twice."""
    (window,) = windows_of([{"labels": 1}], 1, lambda _: None)
    for _ in range(2):
        assert [batch.pop("labels") for batch in window] == [1]
