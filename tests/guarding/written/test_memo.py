"""Values that are written into come back as they were."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from safe_dtype.guarding.written.memo import UNBOUNDED, Memo, Room, is_changeable


class Counts:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.calls = 0
        self.of_names = {"a": 1}


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "tensor": (lambda: torch.ones(3), lambda value: value.add_(1)),
    "large-tensor": (lambda: torch.ones(5000), lambda value: value.add_(1)),
    "a-view-of-it": (lambda: torch.ones(3, 3), lambda value: value[0].zero_()),
    "NaN": (lambda: torch.tensor([torch.nan, 1.0]), lambda value: value.fill_(torch.nan)),
    "its-data": (lambda: torch.ones(3), lambda value: value.data.add_(1)),
    "another-shape": (lambda: torch.ones(3), lambda value: value.resize_(5)),
    "whole-numbers": (lambda: torch.arange(3), lambda value: value.add_(1)),
    "a-parameter": (lambda: nn.Parameter(torch.ones(3)), lambda value: value.data.add_(1)),
    "list": (lambda: [1, 2], lambda value: value.append(3)),
    "an-item": (lambda: [1, 2], lambda value: value.__setitem__(0, 3)),
    "dict": (lambda: {"a": 1}, lambda value: value.update(b=2)),
    "a-value": (lambda: {"a": 1}, lambda value: value.update(a=2)),
    "ordered": (lambda: OrderedDict(a=1, b=2), lambda value: value.move_to_end("a")),
    "set": (lambda: {1}, lambda value: value.add(2)),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda value: value.append(3)),
    "tensor-in-a-list": (lambda: [torch.ones(2)], lambda value: value[0].add_(1)),
    "list-in-a-table": (lambda: {"a": [1]}, lambda value: value["a"].append(2)),
    "object": (Counts, lambda value: setattr(value, "calls", 1)),
    "table-of-an-object": (Counts, lambda value: value.of_names.clear()),
}


def plain(value: Any) -> Any:
    """Return a value that compares as a whole."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.nan_to_num(-7).tolist()
    if isinstance(value, Counts):
        return plain(vars(value))
    if isinstance(value, dict):
        return [(name, plain(item)) for name, item in value.items()]
    return [plain(item) for item in value] if isinstance(value, (list, deque)) else value


@pytest.mark.parametrize("in_inference", [False, True], ids=["normal", "inference"])
@pytest.mark.parametrize(("make", "write"), CHANGES.values(), ids=CHANGES)
def test_what_is_written_comes_back(
    make: Callable[[], Any], write: Callable[[Any], object], *, in_inference: bool
) -> None:
    """Whatever is written into a value is noticed, and comes back into the same object, as often as is asked."""
    with torch.inference_mode(in_inference), torch.no_grad():
        value = make()
        before = plain(copy.deepcopy(value))
        memo = Memo(value, UNBOUNDED)
        assert not memo.is_changed()
        for _ in range(2):
            write(value)
            assert memo.is_changed()
            assert plain(value) != before
            assert memo.bring_back()
            assert plain(value) == before


def test_no_room() -> None:
    """A tensor without room for its copy is left alone, and what is written into it cannot be brought back."""
    small, large = torch.ones(2), torch.ones(100)
    room = Room(100)
    memos = [Memo(small, room), Memo(large, room)]
    assert all(memo.bring_back() for memo in memos)
    small.add_(1)
    large.add_(1)
    assert [memo.is_changed() for memo in memos] == [True, True]
    assert [memo.bring_back() for memo in memos] == [True, False]
    assert small.tolist() == [1, 1]


def test_a_derivative() -> None:
    """What was written into a tensor with a graph is part of its derivative, and stays."""
    leaf = torch.ones(2, requires_grad=True)
    value = leaf * 1
    memo = Memo(value, UNBOUNDED)
    value *= 2
    assert not memo.bring_back()
    value.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [2, 2]


def test_what_is_left_alone_keeps_its_version() -> None:
    """A way back writes into nothing that was not written into: graphs of derivatives rely on it."""
    value = torch.ones(5000)
    memo = Memo(value, UNBOUNDED)
    assert memo.bring_back()
    assert value._version == 0


def test_what_a_quantizer_keeps() -> None:
    """An object of a quantizer, which prepares its codes in the first forward, is not put back by half."""
    state = type("MatmulLtState", (Counts,), {"__module__": "bitsandbytes.autograd._functions"})()
    assert is_changeable(Counts())
    assert not is_changeable(state)


@pytest.mark.parametrize(
    "value", [1, "a", None, (1,), nn.Linear(1, 1), nn.Linear, torch.float32, len, torch.ones(2, device="meta")]
)
def test_what_nothing_is_written_into(value: Any) -> None:
    """Numbers, texts, modules, functions and tensors without memory have nothing to write into."""
    assert not is_changeable(value)
