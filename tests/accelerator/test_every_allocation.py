"""A refusal at every allocation, and a loss at every kernel, of loading and generating over two devices and the CPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerator.rehearsal import Rehearsal
from guarding.generators import generator

from safe_dtype import SafeAutoModelForCausalLM, report
from safe_dtype.devices import facts_of
from safe_dtype.errors import DeviceLostError

IDS = torch.tensor([[9, 10, 11, 12]])
EVERY = 7  # of the allocations and kernels of a generation; 1 sweeps all of them, and takes minutes
DEVICES = ("musa:0", "musa:1")
LAYERS = {f"model.layers.{index}": place for index, place in enumerate((0, "cpu", 1))}
# What is where: whole on one, as accelerate spreads it, and with a layer that is brought in for every step.
MAPS: dict[str, Any] = {
    "one": {"": 0},
    "auto": "auto",
    "offloaded": {"model.embed_tokens": 0, "model.rotary_emb": 0, **LAYERS, "model.norm": 1, "lm_head": 0},
}
LOOPS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of three layers, saved in bfloat16."""
    generator().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture(params=MAPS)
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where it goes."""
    return {"device_map": MAPS[request.param]}


def generating(model: Any, options: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """Return what generates tokens, from a prompt that is on the device."""
    ids = IDS.to("musa:0")

    def generate() -> torch.Tensor:
        torch.manual_seed(0)
        return model.generate(ids, max_new_tokens=3, **options)

    return generate


def allocated(rehearsal: Rehearsal, expected: list[int] | None = None) -> list[int]:
    """Return the bytes on both devices, after all that nobody holds is gone; transformers' own threads may hold some for a while."""
    for _ in range(100):
        gc.collect()
        now = [rehearsal.figure("allocated", index) for index in range(2)]
        if expected is None or now == expected:
            break
        time.sleep(0.02)
    return now


def counted(rehearsal: Rehearsal, name: str, work: Callable[[], Any]) -> list[int]:
    """Return by how much a figure grows on both devices while `work` runs."""
    before = [rehearsal.figure(name, index) for index in range(2)]
    work()
    return [rehearsal.figure(name, index) - start for index, start in enumerate(before)]


def raised_by(work: Callable[[], Any]) -> Exception | None:
    """Return what `work` raises, without its frames and what they hold."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  # which one is what is asked
        return error.with_traceback(None)
    return None


def refused(
    rehearsal: Rehearsal, work: Callable[[], Any], every: int = 1, *, brings_in: bool = False
) -> Iterator[tuple[tuple[int, int], Exception | None]]:
    """Refuse every allocation of `work`, or each of so many, one a run: on which device and which, and what `work` raised.

    A second try of the allocation has memory. Nothing that `work` allocates stays allocated.
    """
    work()
    before = allocated(rehearsal)
    for index, count in enumerate(counted(rehearsal, "allocations", work)):
        for after in range(0, count, every):
            rehearsal.refuse_allocation(after, index)
            error = raised_by(work)
            yield (index, after), error
            del error
            if brings_in:  # weights that accelerate had brought in stay there until they are brought in again
                work()
            assert allocated(rehearsal, before) == before, (index, after)


@pytest.mark.slow
def test_loading(rehearsal: Rehearsal, folder: Path, where: dict[str, Any]) -> None:
    """The caller gets what plain transformers raises: nothing is tried again, and devices keep their verdicts.

    accelerate takes a device that refuses its first byte for one that is not there, and goes on with the others.
    """
    verdicts = [facts_of(device).verdicts for device in DEVICES]
    plain = partial(transformers.AutoModelForCausalLM.from_pretrained, folder, dtype="auto", **where)
    guarded = partial(SafeAutoModelForCausalLM.from_pretrained, folder, **where)
    errors = [[(place, type(error)) for place, error in refused(rehearsal, load)] for load in (plain, guarded)]
    assert errors[0] == errors[1]
    assert torch.OutOfMemoryError in dict(errors[1]).values()
    assert [facts_of(device).verdicts for device in DEVICES] == verdicts


@pytest.mark.slow
@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_generating(rehearsal: Rehearsal, folder: Path, where: dict[str, Any], options: dict[str, Any]) -> None:
    """It is the caller's own exception: no step runs twice, no remedy is tried, and the model answers as before."""
    model = SafeAutoModelForCausalLM.from_pretrained(folder, **where)
    generate = generating(model, options)
    tokens = generate().cpu()
    brings_in = where["device_map"] is MAPS["offloaded"]
    for place, error in refused(rehearsal, lambda: generate() is None, EVERY, brings_in=brings_in):
        assert type(error) is torch.OutOfMemoryError, (place, error)
    assert (report(model).events, report(model).learned) == ((), ())
    assert torch.equal(generate().cpu(), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("options", LOOPS.values(), ids=LOOPS)
def test_losing(rehearsal: Rehearsal, folder: Path, where: dict[str, Any], options: dict[str, Any]) -> None:
    """At every kernel of a generation it is the same error with the device in it, which is asked for nothing more."""
    generate = generating(SafeAutoModelForCausalLM.from_pretrained(folder, **where), options)
    generate()
    for index, count in enumerate(counted(rehearsal, "kernels", generate)):
        for after in range(0, count, EVERY):
            rehearsal.lose(index, after=after)
            error = raised_by(generate)
            assert isinstance(error, DeviceLostError), (index, after, error)
            assert DEVICES[index] in error.device.split(","), after  # all of the model's, where no module is to blame
            assert isinstance(error.__cause__, torch.AcceleratorError)
            assert rehearsal.figure("refusals", index) == 1, after
            rehearsal.reset()
