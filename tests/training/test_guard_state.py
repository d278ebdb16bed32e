"""A loop of one's own that is resumed from a checkpoint goes on as the run would have that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from safe_dtype.errors import SafeDtypeWarning, TrainingLoopError, UnknownDtypeError
from safe_dtype.facts import FLOAT16, FLOAT32
from safe_dtype.training import PrecisionGuard, TorchLoop

GENERATOR = torch.Generator().manual_seed(2)
BATCHES = [(torch.randn(6, 8, generator=GENERATOR), torch.randn(6, 1, generator=GENERATOR)) for _ in range(6)]


class Net(nn.Module):
    """Computes in one 16-bit dtype at most, where it is `narrow`."""

    def __init__(self, narrow: bool = True) -> None:
        super().__init__()
        self.first, self.last, self.narrow = nn.Linear(8, 8), nn.Linear(8, 1), narrow
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return one number a row."""
        self.calls += 1
        hidden = self.first(inputs)
        if self.narrow and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            raise RuntimeError("\"gate_cpu\" not implemented for 'BFloat16'")
        output: torch.Tensor = self.last(torch.relu(hidden))
        return output


def parts(narrow: bool = True, dtype: str = "bfloat16") -> tuple[Net, Any, TorchLoop, PrecisionGuard]:
    """Make a model, its optimizer, and what runs them."""
    torch.manual_seed(0)
    model = Net(narrow)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loop = TorchLoop(model, optimizer, dtype, init_scale=2.0**10)
    return model, optimizer, loop, PrecisionGuard(loop)


def mse(outputs: torch.Tensor, targets: torch.Tensor, nothing: bool) -> torch.Tensor:
    """Return the mean over all rows, or over none of them: NaN, and zero as every gradient."""
    labels = torch.zeros(len(outputs), dtype=torch.long)
    both = torch.cat([outputs.float(), -outputs.float()], 1)
    if nothing:
        return nn.functional.cross_entropy(both, labels - 100)
    return nn.functional.mse_loss(outputs, targets)


def train(
    made: tuple[Net, Any, TorchLoop, PrecisionGuard], batches: list[Any], factor: float = 1.0, nothing: bool = False
) -> None:
    """Make a step with each batch, of a loss over no row at all where there is to be nothing."""
    model, optimizer, loop, guard = made
    for window in guard.windows(batches):
        for attempt in guard.attempts():
            with attempt:
                for inputs, targets in window:
                    with loop.autocast():
                        loss = mse(model(inputs), targets, nothing)
                    loop.backward(loss * factor)
                optimizer.step()
                optimizer.zero_grad()


def test_resumes_in_its_dtype_with_its_scale() -> None:
    """What failed is not tried again; weights and loss scale are those of the run that was not interrupted."""
    whole, first, second = parts(), parts(), parts()
    train(whole, BATCHES, 1e3)
    train(first, BATCHES[:3], 1e3)
    for there, here in zip(second, (first[0], first[1], None, first[3]), strict=True):
        if here is not None:
            there.load_state_dict(here.state_dict())
    assert second[3].dtype == FLOAT16
    train(second, BATCHES[3:], 1e3)
    assert {event.before for event in second[3].events} <= {FLOAT16}
    assert second[3].windows_done == 6
    assert second[2].scaler.state_dict() == whole[2].scaler.state_dict()
    assert whole[2].scaler.get_scale() < 2.0**10
    for ours, plain in zip(second[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, plain)


def test_only_down() -> None:
    """A loop that begins in float32 stays there, whatever the other one was in."""
    state = parts(dtype="float16")[3].state_dict()
    guard = parts(dtype="float32")[3]
    guard.load_state_dict(state)
    assert guard.dtype == FLOAT32


def test_a_state_comes_in_the_middle_of_a_run() -> None:
    """A run that goes back to its checkpoint stays in the dtype that it has come to since, and says so."""
    made = parts()
    state = made[3].state_dict()
    train(made, BATCHES[:2])
    assert (made[3].dtype, made[3].windows_done) == (FLOAT16, 2)
    with pytest.warns(
        SafeDtypeWarning, match="of a run in bfloat16. This one has come down to float16, and stays there. Next"
    ):
        made[3].load_state_dict(state)
    assert (made[3].dtype, made[3].windows_done) == (FLOAT16, 0)
    with (
        pytest.raises(TrainingLoopError, match=r"inside of an attempt\. Next: call it before"),
        next(made[3].attempts()),
    ):
        made[3].load_state_dict(state)


def test_what_is_no_state() -> None:
    """It is refused before anything is changed."""
    guard = parts()[3]
    with pytest.raises(UnknownDtypeError):
        guard.load_state_dict({**guard.state_dict(), "dtype": "float12", "windows_done": 7})
    with pytest.raises(KeyError):
        guard.load_state_dict({})
    assert guard.windows_done == 0


def test_a_pardon_is_kept() -> None:
    """A loss that no dtype makes finite, of gradients that are, is not tried in all of them again after a restart."""
    made, again = parts(narrow=False), parts(narrow=False)
    train(made, BATCHES[:2], nothing=True)
    assert made[0].calls == 1 + 3 + 1
    again[3].load_state_dict(made[3].state_dict())
    train(again, BATCHES[:2], nothing=True)
    assert (again[0].calls, again[3].events) == (2, [])


def test_accelerate_stores_it(tmp_path: Path) -> None:
    """`save_state` and `load_state` of an Accelerator that the guard was registered with keep dtype and scale."""

    def prepared() -> tuple[Net, Accelerator, PrecisionGuard]:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        torch.manual_seed(0)
        accelerator = Accelerator(mixed_precision="bf16", cpu=True)
        net = Net()
        model, _ = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01))
        guard = PrecisionGuard(accelerator, model)
        accelerator.register_for_checkpointing(guard)
        return net, accelerator, guard

    net, accelerator, guard = prepared()
    for window in guard.windows(BATCHES[:2]):
        for attempt in guard.attempts():
            with attempt:
                for inputs, targets in window:
                    accelerator.backward(nn.functional.mse_loss(accelerator._models[0](inputs), targets))
                accelerator._optimizers[0].step()
                accelerator._optimizers[0].zero_grad()
    guard.loop.scaler.update(64.0)
    accelerator.save_state(str(tmp_path))
    weights = {name: weight.clone() for name, weight in net.state_dict().items()}
    net, accelerator, guard = prepared()
    accelerator.load_state(str(tmp_path))
    assert (guard.dtype, guard.loop.scaler.get_scale(), guard.windows_done) == (FLOAT16, 64.0, 2)
    assert all(torch.equal(weights[name], weight) for name, weight in net.state_dict().items())


def test_an_accelerator_in_float16_resumes_what_came_down(tmp_path: Path) -> None:
    """It asks for the state of a scaler, which a run in float32 has no more: that of the time in float16 is kept for it."""

    def prepared() -> tuple[Any, Accelerator, PrecisionGuard]:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        torch.manual_seed(0)
        accelerator = Accelerator(mixed_precision="fp16", cpu=True)
        net = Net(narrow=False)
        model, optimizer = accelerator.prepare(net, torch.optim.AdamW(net.parameters(), lr=0.01))
        guard = PrecisionGuard(accelerator, model, init_scale=4.0)
        accelerator.register_for_checkpointing(guard)
        net.first.register_forward_hook(_not_in_float16)
        for attempt in guard.attempts() if not (tmp_path / "scaler.pt").exists() else ():
            with attempt:
                accelerator.backward(model(BATCHES[0][0]).square().mean())
                optimizer.step()
        return net, accelerator, guard

    first, accelerator, guard = prepared()
    assert guard.dtype == FLOAT32
    for _ in range(2):  # the resumed run is resumed again
        accelerator.save_state(str(tmp_path))
        second, accelerator, guard = prepared()
        accelerator.load_state(str(tmp_path))
        assert (guard.dtype, guard.loop.scaler) == (FLOAT32, None)
        assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert torch.load(tmp_path / "scaler.pt")["scale"] == 4.0


def _not_in_float16(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
    if output.dtype == torch.float16:
        raise RuntimeError("\"gate_cpu\" not implemented for 'Half'")
