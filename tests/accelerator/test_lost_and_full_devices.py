"""A device that is lost, or has no room, in the middle of a guarded call: what the caller gets, and what is left alone."""

from __future__ import annotations

import copy
import gc
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from accelerator.rehearsal import Rehearsal
from guarding.generators import DOWN, ONE_ROW, generator

from safe_dtype import BFLOAT16, FLOAT32, guard, report
from safe_dtype.devices import facts_of
from safe_dtype.errors import DeviceLostError, NoDtypeLeft
from safe_dtype.facts import VerdictKind
from safe_dtype.models.recast import peak_growth, recast
from safe_dtype.models.undo_log import UndoLog
from safe_dtype.testing import TEXTS, fault

BF16, FP32 = torch.bfloat16, torch.float32
STATIC = {"cache_implementation": "static", "disable_compile": True}
# Texts that are of bfloat16, and texts that say nothing of a dtype: nothing is remembered of those.
TEXTS_OF_LOSS = {
    "sampling": (TEXTS["sticky"], "bfloat16"),
    "cublas": ("CUDA error: an illegal memory access was encountered when calling `cublasGemmEx(CUDA_R_16BF)`", "bfloat16"),
    "assert": ("CUDA error: device-side assert triggered", ""),
    "ecc": ("CUDA error: uncorrectable ECC error encountered", ""),
    "watchdog": ("CUDA error: the launch timed out and was terminated", ""),
    "xpu": ("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)", ""),
}  # fmt: skip


def there(index: int = 0) -> Any:
    """Return a guarded model in bfloat16 on a device."""
    return guard(generator().to(f"musa:{index}"))


def run(model: Any, **options: Any) -> torch.Tensor:
    """Generate on the model's device; return the tokens there."""
    options = {name: value.to(model.device) for name, value in ONE_ROW.items()} | {"do_sample": False} | options
    return model.generate(**{"max_new_tokens": 6} | options)


@pytest.mark.parametrize("options", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("text", TEXTS_OF_LOSS)
def test_lost(rehearsal: Rehearsal, text: str, options: dict[str, Any]) -> None:
    """Nobody asks it for anything more: not the way back, not the error, not the report; another device goes on."""
    message, dtype = TEXTS_OF_LOSS[text]
    model, other = there(), there(1)
    tokens = run(other)
    rehearsal.lose(0, after=500, error=message)
    with pytest.raises(DeviceLostError) as caught:
        run(model, **options)
    assert (caught.value.device, caught.value.dtype) == ("musa:0", dtype)
    assert isinstance(caught.value.__cause__, torch.AcceleratorError)
    assert message.partition(":")[0] in "".join(traceback.format_exception(caught.value))
    assert report(model).events == ()
    assert message not in report(model).as_issue()
    assert rehearsal.figure("refusals", 0) == 1
    assert torch.equal(run(other), tokens)
    rehearsal.reset()
    kind = facts_of("musa:0").verdict(BFLOAT16).kind
    assert (kind is VerdictKind.CRASHES) is bool(dtype)


def test_lost_anywhere(rehearsal: Rehearsal) -> None:
    """Wherever the loop notices it, in a step or between two: the same error, and nothing is asked for twice."""
    plain = generator()
    for after in range(500, 800, 31):
        model = guard(copy.deepcopy(plain).to("musa:0"))
        rehearsal.lose(0, after=after)
        with pytest.raises(DeviceLostError, match="CUDA_LAUNCH_BLOCKING") as caught:
            run(model, do_sample=True)
        assert isinstance(caught.value.__cause__, torch.AcceleratorError)
        assert rehearsal.figure("refusals", 0) == 1, after
        rehearsal.reset()


@pytest.mark.parametrize("after", [10, 40])
def test_lost_on_the_way_to_another_dtype(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, after: int
) -> None:
    """Weights that were changed by then stay where they are: their device is not asked for the old ones."""
    model = there()
    rehearsal.forbid(BF16)

    def begin(*args: Any) -> dict[torch.device, int]:
        rehearsal.lose(0, after=after)
        return {}

    monkeypatch.setattr("safe_dtype.guarding.remedies.next_dtype.peak_growth", begin)
    with pytest.raises(DeviceLostError):
        run(model)
    assert rehearsal.figure("refusals", 0) == 1
    assert "could not be taken back" not in caplog.text


def test_the_device_of_the_module_is_named(rehearsal: Rehearsal) -> None:
    """Of a model on two devices the one is named where the module that failed is."""
    plain = generator()
    table = {"model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1, "model.norm": 0, "model.embed_tokens": 0,
             "lm_head": 0, "model.rotary_emb": 0}  # fmt: skip
    from accelerate import dispatch_model

    model = guard(dispatch_model(plain, table))
    with fault(model, DOWN, "sticky"), pytest.raises(DeviceLostError) as caught:
        model.generate(ONE_ROW["input_ids"].to("musa:0"), max_new_tokens=2)
    assert caught.value.device == "musa:1"
    assert caught.value.dtype == "bfloat16"


def test_the_lost_device_is_named_wherever_it_is_lost(rehearsal: Rehearsal) -> None:
    """In a module, and while its inputs are brought from the other device: that may be the one that is lost."""
    from accelerate import dispatch_model

    parts = ("model.embed_tokens", "model.rotary_emb", "lm_head", *(f"model.layers.{index}" for index in range(3)))
    table = {part: int(part.endswith(("1", "2"))) for part in parts} | {"model.norm": 1}
    model = guard(dispatch_model(generator(), table))
    ids = ONE_ROW["input_ids"].to("musa:0")
    with torch.no_grad():
        model(ids)
        before = [rehearsal.counts(index).kernels for index in range(2)]
        model(ids)
        counts = [rehearsal.counts(index).kernels - start for index, start in enumerate(before)]
        for index, count in enumerate(counts):
            for after in range(0, count, 2):
                rehearsal.lose(index, after=after)
                with pytest.raises(DeviceLostError) as caught:
                    model(ids)
                assert f"musa:{index}" in caught.value.device.split(","), after
                rehearsal.reset()


def prefill(rehearsal: Rehearsal, model: Any) -> torch.Tensor:
    """Run a prompt that there is no room for."""
    rehearsal.leave_free(30_000, 0)
    return model(torch.arange(80, device="musa:0")[None] % 97)


def decode(rehearsal: Rehearsal, model: Any) -> torch.Tensor:
    """Generate until the cache has no room any more."""
    rehearsal.leave_free(40_000, 0)
    return run(model, max_new_tokens=400)


@pytest.mark.parametrize("work", [prefill, decode])
def test_no_room(rehearsal: Rehearsal, work: Callable[[Rehearsal, Any], Any]) -> None:
    """It is the caller's own exception: nothing runs twice, nothing is changed, and the model goes on afterwards."""
    model = there()
    tokens, calls = run(model), []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: calls.append(rehearsal.counts(0).kernels))
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError) as caught:
        work(rehearsal, model)
    assert type(caught.value) is torch.OutOfMemoryError
    assert caught.value.__context__ is None
    begun = calls[-1]
    assert rehearsal.counts(0).kernels - begun < 200  # the layers of one step, and no second try
    assert report(model).events == ()
    rehearsal.limit(16 << 30)
    assert model.dtype == BF16
    assert torch.equal(run(model), tokens)


def test_no_room_to_look_at_the_results(rehearsal: Rehearsal) -> None:
    """What looks at the numbers of a step needs memory, too: its refusal is raised, not asked for a second time."""
    model, ids = there(), ONE_ROW["input_ids"].to("musa:0")
    with torch.no_grad():
        model(ids)
        before = rehearsal.figure("allocations")
        model(ids)
        count = rehearsal.figure("allocations") - before
        for after in range(count - 8, count):
            rehearsal.refuse_allocation(after)
            with pytest.raises(torch.OutOfMemoryError):
                model(ids)
    assert report(model).events == ()


def test_the_cache_is_brought_back(rehearsal: Rehearsal) -> None:
    """A step that had no room leaves the caller's cache as it found it: the same step runs later."""
    model = there()
    cache = transformers.DynamicCache(config=model.config)
    ids = ONE_ROW["input_ids"].to("musa:0")
    with torch.no_grad():
        model(ids, past_key_values=cache)
        rehearsal.leave_free(30_000, 0)
        longer = torch.arange(80, device="cpu")[None] % 97
        with pytest.raises(torch.OutOfMemoryError):
            model(longer.to("musa:0"), past_key_values=cache)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [ids.shape[1]] * 3


@pytest.mark.parametrize("is_known", [True, False], ids=["known-before", "found-out"])
def test_no_room_to_find_out(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    """Trials that had no room are no verdict: the exception comes through, and nothing is learned."""

    def fails(module: torch.nn.Module, args: Any) -> None:
        if module.weight.dtype == BF16:
            raise RuntimeError("opcode 0x3f has no encoding here")

    model = there()
    run(model)
    model.lm_head.register_forward_pre_hook(fails)
    rehearsal.leave_free(12_000, 0)  # its copy in float32 takes 12,416
    if not is_known:
        monkeypatch.setattr(rehearsal.backend, "mem_get_info", lambda device: (2**34, 2**34))
    with pytest.raises(RuntimeError, match=r"^opcode 0x3f"):
        run(model)
    assert (report(model).learned, model.dtype) == ((), BF16)


def test_peak_of_a_step_down(rehearsal: Rehearsal) -> None:
    """A model goes to float32 weight by weight, and what that takes at most is known beforehand, to the byte."""
    model = generator().to("musa:0")
    gc.collect()
    before, predicted = rehearsal.figure("allocated"), peak_growth(model, {BF16}, FP32)
    rehearsal.backend.reset_peak_memory_stats(0)
    log = UndoLog()
    changed = recast(model, {BF16}, FP32, log=log)
    after = rehearsal.figure("allocated")
    assert after - before == changed.grown_bytes == sum(weight.numel() for weight in model.parameters()) * 2
    largest = max(weight.numel() for weight in model.parameters())
    peak = rehearsal.figure("peak_allocated")
    assert peak <= after + largest * (2 * BF16.itemsize + 1)  # the old weight, and what it is compared with
    assert predicted == {torch.device("musa:0"): peak - before}
    log.undo()
    assert rehearsal.figure("allocated") == before


@pytest.mark.parametrize(("old", "new"), [(torch.float16, BF16), (FP32, BF16), (FP32, torch.float16)])
def test_peak_of_a_change_that_rounds(rehearsal: Rehearsal, old: torch.dtype, new: torch.dtype) -> None:
    """What a narrower dtype rounds away is kept in main memory: never two models on the device."""
    model = generator().to("musa:0", old)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    gc.collect()
    weights = [weight.detach().cpu() for weight in model.parameters()]
    before, predicted = rehearsal.figure("allocated"), peak_growth(model, {old}, new)
    rehearsal.backend.reset_peak_memory_stats(0)
    log = UndoLog()
    changed = recast(model, {old}, new, log=log)
    assert rehearsal.figure("allocated") - before == changed.grown_bytes
    peak = rehearsal.figure("peak_allocated") - before
    assert predicted[torch.device("musa:0")] == peak
    assert predicted[torch.device("cpu")] >= sum(weight.nbytes for weight in weights)
    log.undo()
    assert all(torch.equal(a, b.cpu()) for a, b in zip(weights, model.parameters(), strict=True))
    assert {weight.device for weight in model.parameters()} == {torch.device("musa:0")}


def test_refused_before_anything_changes(rehearsal: Rehearsal) -> None:
    """Where float32 has no room that is known beforehand: no weight is touched, and the error has both figures."""
    model = there()
    tokens = run(model)
    where = [weight.data_ptr() for weight in model.parameters()]
    rehearsal.forbid(BF16)
    rehearsal.leave_free(60_000, 0)
    rehearsal.backend.reset_peak_memory_stats(0)
    (needed,) = peak_growth(model, {BF16}, FP32).values()
    message = rf"float32: needs {needed:,} bytes more on musa:0, [\d,]+ are free\nNext: .*device_map='auto'"
    with pytest.raises(NoDtypeLeft, match=message) as caught:
        run(model)
    assert "CUBLAS_STATUS_NOT_SUPPORTED" in str(caught.value.__cause__)
    assert [weight.data_ptr() for weight in model.parameters()] == where
    rehearsal.reset()
    assert torch.equal(run(model), tokens)


@pytest.mark.parametrize("free_bytes", [2_000, 20_000, 31_000, 47_000, 60_000, 68_000])
def test_room_that_is_gone_in_the_middle(
    rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    """Another process may take what was free: the weights that were changed go back, bit for bit, though nothing is free."""
    model = there()
    tokens, before = run(model), [weight.clone() for weight in model.parameters()]
    rehearsal.forbid(BF16)
    monkeypatch.setattr(rehearsal.backend, "mem_get_info", lambda device: (2**34, 2**34))
    rehearsal.leave_free(free_bytes, 0)
    allocated = rehearsal.figure("allocated")
    with pytest.raises((NoDtypeLeft, torch.OutOfMemoryError)):
        run(model)
    rehearsal.reset()
    assert model.dtype == BF16
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert rehearsal.figure("allocated") == allocated
    assert torch.equal(run(model), tokens)


@pytest.mark.parametrize("kind", ["enters", "is left"])
def test_inputs_elsewhere(rehearsal: Rehearsal, kind: str) -> None:
    """Inputs on another device than the weights are torch's own error, as without a guard."""
    plain, model = generator().to("musa:0"), there()
    ids = ONE_ROW["input_ids"].to("cpu" if kind == "enters" else "musa:1")
    errors = []
    for one in (plain, model):
        with torch.no_grad(), pytest.raises(RuntimeError) as caught:
            one(ids)
        errors.append((type(caught.value), str(caught.value)))
    assert errors[0] == errors[1]
    assert report(model).events == ()


def test_room_for_the_next_dtype(rehearsal: Rehearsal) -> None:
    """With room for it the very same fault is cured, on the device."""
    model = there()
    rehearsal.forbid(BF16)
    run(model)
    assert [event.after for event in report(model).events] == [FLOAT32]
    assert {weight.device for weight in model.parameters()} == {torch.device("musa:0")}
