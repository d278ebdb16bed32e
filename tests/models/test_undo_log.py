"""The way back from a change: bit for bit, the latest step first."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

from safe_dtype.models.recast import recast
from safe_dtype.models.undo_log import UndoLog, way_back

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize("old", [BF16, FP16, FP32])
@pytest.mark.parametrize("new", [BF16, FP16, FP32])
@pytest.mark.parametrize("size", [1.0, 1e-6], ids=["normal", "tiny"])
def test_way_back(old: torch.dtype, new: torch.dtype, size: float) -> None:
    """A tensor comes back bit for bit from any dtype, whatever the cast has rounded away."""
    torch.manual_seed(0)
    tensor = (torch.randn(64, 5) * size).to(old)
    tensor[0, 0], tensor[0, 1] = float("inf"), -0.0
    bits = torch.int16 if old.itemsize == 2 else torch.int32
    cast = tensor.to(new)
    back = way_back(tensor, cast)
    assert torch.equal(back(cast).view(bits), tensor.view(bits))
    assert torch.equal(back(tensor).view(bits), tensor.view(bits))


def test_what_differs_little_is_kept_by_number() -> None:
    """Where a cast rounds a few numbers, only these are held."""
    tensor = torch.ones(1024, dtype=BF16)
    tensor[3] = 1e-9
    cast = tensor.to(FP16)
    back = way_back(tensor, cast)
    held = [cell.cell_contents for cell in back.__closure__ or () if isinstance(cell.cell_contents, torch.Tensor)]
    assert sum(one.numel() for one in held) == 2
    assert torch.equal(back(cast), tensor)


def test_the_latest_first() -> None:
    """Steps run in reverse order, those after a mark alone, and one that fails does not stop the others."""
    log, order = UndoLog(), []
    log.add(lambda: order.append(1))
    log.add(lambda: order.append(2))
    log.add(lambda: 1 / 0)
    log.undo(since=1)
    assert (order, len(log)) == ([2], 1)
    log.undo()
    assert order == [2, 1]


class TooLateError(Exception):
    """What a server raises where a request has taken too long."""


def _too_late(*_: object) -> None:
    raise TooLateError


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no signals of the user's on this system")
@pytest.mark.parametrize("error", [TooLateError, KeyboardInterrupt])
def test_from_outside(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from outside in the middle of a step ends nothing: all is taken back, and then it comes through."""
    log, state, interrupts = UndoLog(), {"a": 1, "b": 1, "c": 1}, iter([True, False])

    def step() -> None:
        if next(interrupts):
            if error is KeyboardInterrupt:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGUSR1)
        state["b"] = 0

    log.add(lambda: state.update(a=0))
    log.add(step)
    log.add(lambda: state.update(c=0))
    before = signal.signal(signal.SIGUSR1, _too_late)
    try:
        with pytest.raises(error):
            log.undo()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (state, len(log)) == ({"a": 0, "b": 0, "c": 0}, 0)


def test_interrupted_for_ever() -> None:
    """A step that is interrupted every time is given up in the end; the others run."""
    log, done = UndoLog(), []

    def step() -> None:
        raise KeyboardInterrupt

    log.add(lambda: done.append(1))
    log.add(step)
    with pytest.raises(KeyboardInterrupt):
        log.undo()
    assert (done, len(log)) == ([1], 0)


def test_forgetful() -> None:
    """One that keeps nothing takes nothing back."""
    log = UndoLog.forgetful()
    log.add(lambda: pytest.fail("kept"))
    log.undo()
    assert len(log) == 0


def test_a_recast_is_taken_back() -> None:
    """Weights, tied ones too, buffers and attributes are what they were, and the same objects."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)).to(BF16)
    net[2].weight = net[0].weight
    net.scale = torch.full((3,), 1e-7, dtype=BF16)
    parameters = list(net.parameters())
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()} | {"scale": net.scale.clone()}
    for new in (FP16, FP32):
        log = UndoLog()
        recast(net, {BF16}, new, log=log)
        assert net[0].weight.dtype == net.scale.dtype == new
        log.undo()
        after = dict(net.state_dict()) | {"scale": net.scale}
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before
        )
        assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
        assert net[2].weight is net[0].weight
