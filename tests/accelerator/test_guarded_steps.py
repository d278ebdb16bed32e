"""The core of the fault matrix on devices: what comes out is a run that switched dtype at that very step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import dispatch_model
from accelerator.rehearsal import Rehearsal
from guarding.generators import BOTH_ROWS, DOWN, NEW_TOKENS, ONE_ROW, Run, Tape, generate, generator
from guarding.oracle import Switch
from pairwise import pairwise

from safe_dtype import FLOAT32, guard, report
from safe_dtype.testing import fault

BF16, FP32 = torch.bfloat16, torch.float32
MOMENTS = {"first": 0, "middle": 5, "last": NEW_TOKENS - 1}
KINDS = ("cublas", "nan", "inf", "mismatch")
STATIC = {"cache_implementation": "static", "disable_compile": True}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": BOTH_ROWS,
    "sampling": BOTH_ROWS | {"do_sample": True, "temperature": 1.5, "top_k": 0},
    "beam": BOTH_ROWS | {"num_beams": 3},
    "beam-sampling": BOTH_ROWS | {"num_beams": 3, "do_sample": True},
}
CACHES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dynamic": ("qwen3", DOWN, {}),
    "static": ("qwen3", DOWN, STATIC),
    "sliding": ("mistral", DOWN, {}),
    "static-sliding": ("gemma3", DOWN, STATIC),
    "encoder-decoder": ("bart", "model.decoder.layers.1.fc2", {}),
    "float8": ("qwen3", DOWN, {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}),
    "states": ("mamba", "backbone.layers.1.mixer.out_proj", {}),
}
OUTSIDE = {"model.embed_tokens": 0, "lm_head": 0, "model.norm": 0, "model.rotary_emb": 0}
PLACES: dict[str, dict[str, Any]] = {
    "two": {"model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1},
    "two-and-cpu": {"model.layers.0": 1, "model.layers.1": "cpu", "model.layers.2": 0},
    "cpu-around": {"model.layers.0": "cpu", "model.layers.1": 0, "model.layers.2": "cpu"},
}
Made = Callable[[], Any]


def run(model: Any, options: dict[str, Any]) -> Run:
    """Generate on the first device; the random state is that of the device."""
    here = {name: value.to("musa:0") if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    done = generate(model, **here)
    return Run(done.tensors, torch.get_device_module("musa").get_rng_state(0), done.cache)


def on_one(name: str) -> Any:
    """Return a model on the first device."""
    return generator(name).to("musa:0")


def check(make: Made, name: str, module: str, kind: str, call: int, options: dict[str, Any]) -> Any:
    """Let a module fail, and compare with a model on one device that is switched by hand; return the guarded model."""
    switched, model = on_one(name), guard(make())
    Switch(switched, call, FLOAT32)
    wanted = run(switched, options)
    with fault(model, module, kind, call=call) as put:
        found = run(model, options)
    assert put.fired
    assert found.differs(wanted) == []
    assert {(event.module, event.step, event.restarted) for event in report(model).events} == {(module, call, False)}
    assert model.dtype == FP32
    return model


@pytest.mark.parametrize(("strategy", "moment", "kind"), pairwise(STRATEGIES, MOMENTS, KINDS))
def test_strategies(rehearsal: Rehearsal, strategy: str, moment: str, kind: str) -> None:
    """Tokens, scores, beams and the random state of the device go on from the very step."""
    check(lambda: on_one("qwen3"), "qwen3", DOWN, kind, MOMENTS[moment], STRATEGIES[strategy])


@pytest.mark.parametrize(("moment", "kind"), [("first", "cublas"), ("middle", "nan")])
def test_assisted(rehearsal: Rehearsal, moment: str, kind: str) -> None:
    """Several tokens a step, some of which are taken back, are no other matter."""
    options = ONE_ROW | {"prompt_lookup_num_tokens": 3}
    check(lambda: on_one("qwen3"), "qwen3", DOWN, kind, MOMENTS[moment] // 2, options)


@pytest.mark.parametrize(("cache", "moment", "kind"), pairwise(CACHES, MOMENTS, KINDS))
def test_caches(rehearsal: Rehearsal, cache: str, moment: str, kind: str) -> None:
    """Every cache is rolled back and cast on the device."""
    name, module, options = CACHES[cache]
    check(lambda: on_one(name), name, module, kind, MOMENTS[moment], BOTH_ROWS | options)


@pytest.mark.parametrize(("place", "moment", "kind"), pairwise(PLACES, MOMENTS, KINDS))
def test_places(rehearsal: Rehearsal, place: str, moment: str, kind: str) -> None:
    """Over two devices, and with weights in main memory that hooks bring in, the same numbers come out."""

    def make() -> Any:
        return dispatch_model(generator(), OUTSIDE | PLACES[place], main_device=0)

    model = check(make, "qwen3", DOWN, kind, MOMENTS[moment], STRATEGIES["sampling"])
    left = {str(weight.device) for weight in model.parameters()}
    assert left == {"musa:0"} | ({"musa:1"} if "two" in place else set()) | ({"meta"} if "cpu" in place else set())


@pytest.mark.parametrize("kind", ["cublas", "nan"])
def test_disk(rehearsal: Rehearsal, tmp_path: Path, kind: str) -> None:
    """What lies on disk is read in the new dtype from that step on."""
    generator().save_pretrained(tmp_path)
    table = OUTSIDE | {"model.layers.0": 0, "model.layers.1": "disk", "model.layers.2": "cpu"}

    def make() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=BF16, device_map=table, offload_folder=tmp_path / "offload"
        )
        model.generation_config.update(eos_token_id=None, pad_token_id=0)
        return model

    check(make, "qwen3", DOWN, kind, 5, BOTH_ROWS)


def test_streamed_once(rehearsal: Rehearsal) -> None:
    """Every token is streamed once, whichever device it comes from."""
    model, tape = guard(on_one("qwen3")), Tape()
    with fault(model, DOWN, "nan", call=5):
        tokens = run(model, ONE_ROW | {"streamer": tape}).tensors[0]
    assert tape.tokens == tokens[0].tolist()


@pytest.mark.parametrize("kind", ["cublas", "nan"])
def test_callers_autocast(rehearsal: Rehearsal, kind: str) -> None:
    """The autocast of the device, put around the call, is turned off where that helps; the weights stay."""
    model, plain = (generator(dtype=FP32).to("musa:0") for _ in range(2))
    guard(model)
    ids = ONE_ROW["input_ids"].to("musa:0")
    if kind == "cublas":
        rehearsal.forbid(torch.float16)
    else:
        rehearsal.spoil(torch.float16)
    with torch.no_grad(), torch.autocast("musa", dtype=torch.float16):
        found = model(ids).logits
    (event,) = report(model).events
    assert "torch.autocast(dtype=float16)" in event.autocast
    assert model.dtype == FP32
    with torch.no_grad():
        assert torch.equal(found, plain(ids).logits)
