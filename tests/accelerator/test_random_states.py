"""Random numbers of every device, after what ran again: as if nothing had failed."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerator.rehearsal import Rehearsal
from guarding.generators import DOWN, IDS, generator, with_unknown_cache
from torch import nn

from safe_dtype import guard, report
from safe_dtype.devices.random_states import RandomStates, random_states_kept
from safe_dtype.facts import FLOAT16
from safe_dtype.models.recast import recast
from safe_dtype.testing import fault


class DrawingBlock(nn.Module):
    """Adds noise of the device that it is on, then multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Linear(8, 8)

    def forward(self, states: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Return what has the shape and the dtype of `states`, (rows, 8)."""
        noise = torch.empty_like(states, dtype=torch.float32).normal_(generator=generator)
        return self.product(states + noise.to(states.dtype))


@pytest.fixture(params=[0, 1])
def index(request: pytest.FixtureRequest) -> int:
    """Each device in turn."""
    return int(request.param)


def test_states_are_read_and_set_without_waiting(rehearsal: Rehearsal) -> None:
    """The CPU and all devices draw the same again, whether they drew is known, and nothing waits for a device."""
    with rehearsal.counting() as counting:
        states = RandomStates()
        assert not states.have_moved()
        drawn = _draws(rehearsal)
        assert states.have_moved()
        states.set_again()
    assert counting.counts.syncs == 0
    assert all(torch.equal(again, before) for again, before in zip(_draws(rehearsal), drawn, strict=True))


def test_a_block_leaves_no_trace(rehearsal: Rehearsal) -> None:
    """After a block that draws, everything draws as if it had not been."""
    with random_states_kept():
        drawn = _draws(rehearsal)
    assert all(torch.equal(again, before) for again, before in zip(_draws(rehearsal), drawn, strict=True))


@pytest.mark.parametrize("names", [("default_generators",), ("default_generators", "get_rng_state", "set_rng_state")])
def test_a_backend_may_lack_functions(rehearsal: Rehearsal, names: tuple[str, ...]) -> None:
    """Generators are asked for, then states; with neither, those of the CPU are kept."""
    rehearsal.withhold(*names)
    states = RandomStates()
    host, *on_devices = _draws(rehearsal)
    states.set_again()
    host_again, *on_devices_again = _draws(rehearsal)
    assert torch.equal(host, host_again)
    is_known = all(torch.equal(*pair) for pair in zip(on_devices, on_devices_again, strict=True))
    assert is_known == (len(names) == 1)


def test_a_step_that_runs_again_draws_the_same(rehearsal: Rehearsal, index: int) -> None:
    """A step that draws on its device and fails gives, after its cure, what float32 gives with the same draws."""
    torch.manual_seed(0)
    plain = DrawingBlock().eval().half().float().to(rehearsal.device(index))
    guarded = guard(copy.deepcopy(plain).half())
    states = torch.ones(1, 8, device=rehearsal.device(index))
    torch.manual_seed(3)
    expected = [plain(states) for _ in range(3)]
    torch.manual_seed(3)
    with fault(guarded, "product", "cublas", dtype=FLOAT16, call=1):
        results = [guarded(states.half()).float() for _ in range(3)]
    assert len(report(guarded).events) == 1
    assert torch.allclose(results[0], expected[0], atol=0.05)
    assert torch.equal(results[1], expected[1])
    assert torch.equal(results[2], expected[2])


@pytest.mark.parametrize("begins_anew", [False, True], ids=["resumed", "anew"])
def test_sampling_is_equal(rehearsal: Rehearsal, index: int, begins_anew: bool) -> None:
    """Tokens that are sampled on a device are float32's, after a step that ran again and after a new beginning."""
    model, plain = guard(generator()).to(rehearsal.device(index)), generator().to(rehearsal.device(index))
    if begins_anew:
        model, plain = with_unknown_cache(model), with_unknown_cache(plain)
    recast(plain, {torch.bfloat16}, torch.float32)
    ids = {"input_ids": IDS[:1].to(rehearsal.device(index))}
    torch.manual_seed(3)
    expected = plain.generate(**ids, max_new_tokens=6, do_sample=True)
    torch.manual_seed(3)
    with fault(model, DOWN, "cublas", call=2):
        sampled = model.generate(**ids, max_new_tokens=6, do_sample=True)
    assert [event.restarted for event in report(model).events] == [begins_anew]
    assert torch.equal(sampled, expected)


def test_a_generator_of_the_caller_is_brought_back(rehearsal: Rehearsal, index: int) -> None:
    """So is one that the caller passes in."""
    guarded = guard(DrawingBlock().eval().to(rehearsal.device(index), torch.float16))
    states = torch.ones(1, 8, device=rehearsal.device(index), dtype=torch.float16)
    generators = [torch.Generator(rehearsal.device(index)).manual_seed(3) for _ in range(2)]
    with fault(guarded, "product", "cublas", dtype=FLOAT16):
        guarded(states, generator=generators[0])
    assert report(guarded).events
    guarded(states, generator=generators[1])
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def _draws(rehearsal: Rehearsal) -> list[torch.Tensor]:
    """Draw on the CPU and on both devices; the values stay where they are."""
    return [torch.rand(4, device=device) for device in ("cpu", rehearsal.device(0), rehearsal.device(1))]
