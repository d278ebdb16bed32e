"""What holds on every accelerator, as functions of a device: run on CUDA, and on the rehearsal device in its place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engineered
import pytest
import torch
import transformers as tf

from safe_dtype import SafeAutoModelForCausalLM, guard, plan_of, report
from safe_dtype.testing import fault

DOWN = "model.layers.2.mlp.down_proj"
NEW_TOKENS = 8


@dataclass(frozen=True)
class Device:
    """A device, how to count the host's waits for it during a call, and how to leave few bytes free on it."""

    name: str
    waits: Callable[[Callable[[], object]], int]
    leave_free: Callable[[int], AbstractContextManager[object]]


def model_on(device: Device, dtype: torch.dtype = torch.bfloat16, **sizes: int) -> Any:
    """Return a random Qwen3 on the device, the same each time."""
    shape = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, **sizes}
    config = tf.Qwen3Config(
        **shape, num_attention_heads=4, num_key_value_heads=2, head_dim=16, eos_token_id=None, pad_token_id=0
    )
    torch.manual_seed(0)
    return tf.Qwen3ForCausalLM(config).to(dtype).to(device.name).eval()


def generated(device: Device, model: Any, tokens: int = NEW_TOKENS, **options: Any) -> torch.Tensor:
    """Return the tokens after a fixed prompt, on the host; the same draws each time."""
    torch.manual_seed(3)
    prompt = torch.arange(20, 36, device=device.name)[None]
    wanted = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, **options}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **wanted).cpu()


def captured_step(model: Any, token: torch.Tensor) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """Return a CUDA graph of one step of `token`, shape (1, 1), and the logits that each replay writes anew."""
    stream = torch.cuda.Stream()  # warmed up on another stream, as torch's documents ask
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(input_ids=token, use_cache=False)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(input_ids=token, use_cache=False).logits
    return graph, logits


def fails_at_a_step(device: Device, _: Path, kind: str = "cublas", **options: Any) -> None:
    """A step that raises goes on in float32 from where it is; what came before stays."""
    plain, model = generated(device, model_on(device), **options), guard(model_on(device))
    with fault(model, DOWN, kind, call=3) as put:
        tokens = generated(device, model, **options)
    assert put.fired
    assert (tokens.shape, model.dtype) == (plain.shape, torch.float32)
    assert torch.equal(tokens[:, : 16 + 3], plain[:, : 16 + 3])
    assert {parameter.device for parameter in model.parameters()} == {torch.device(device.name)}
    assert len(report(model).events) == 1


def is_nan_at_a_step(device: Device, folder: Path) -> None:
    """So does one that gives NaN."""
    fails_at_a_step(device, folder, "nan")


def is_nan_while_sampling(device: Device, _: Path) -> None:
    """NaN is never sampled from, which would take the device from the process, and the draws before it are the same."""
    plain, model = generated(device, model_on(device), do_sample=True), guard(model_on(device))
    with fault(model, DOWN, "nan", call=3):
        tokens = generated(device, model, do_sample=True)
    assert torch.equal(tokens[:, : 16 + 3], plain[:, : 16 + 3])
    assert int(torch.ones(3, device=device.name).sum()) == 3  # it is still there


def has_a_static_cache(device: Device, folder: Path) -> None:
    """A static cache is rolled back and cast as a growing one is."""
    fails_at_a_step(device, folder, "cublas", cache_implementation="static", disable_compile=True)


def draws_as_plain(device: Device, _: Path) -> None:
    """A guarded generation samples what a plain one samples."""
    plain, model = generated(device, model_on(device), do_sample=True), guard(model_on(device))
    assert torch.equal(generated(device, model, do_sample=True), plain)


def waits_as_plain(device: Device, _: Path) -> None:
    """The guard makes the host wait for the device no more often in a long generation than plain transformers does."""
    model = model_on(device)
    generated(device, model)

    def added() -> int:
        long, short = (device.waits(lambda count=count: generated(device, model, count)) for count in (12, 4))
        return long - short

    plain = added()
    guard(model)
    generated(device, model)
    assert added() == plain


def has_no_room(device: Device, _: Path) -> None:
    """Where float32 has no room the error comes through, the model stays in bfloat16, and works afterwards."""
    model = guard(model_on(device, vocab_size=8192, hidden_size=512, intermediate_size=2048))
    before = generated(device, model)
    with device.leave_free(4 << 20), fault(model, DOWN, "cublas"), pytest.raises(RuntimeError):
        generated(device, model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(generated(device, model), before)


def is_rescued(device: Device, folder: Path) -> None:
    """A model that float16 cannot hold is rescaled into it on loading, and says what float32 says."""
    source = engineered.saved("qwen3", folder / "overflowing")
    prompt = engineered.prompts("qwen3", count=1, tokens=48, seed=9)[0]["input_ids"].to(device.name)

    def logits(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=prompt).logits.float().cpu()

    load = tf.AutoModelForCausalLM.from_pretrained
    truth = logits(load(source, dtype=torch.float32, device_map=device.name))
    assert not logits(load(source, dtype=torch.float16, device_map=device.name)).isfinite().all()
    model = SafeAutoModelForCausalLM.from_pretrained(source, dtype="float16", device_map=device.name)
    assert plan_of(model).rescale
    assert (logits(model).argmax(-1) == truth.argmax(-1)).float().mean() > 0.95
    assert not report(model).events


def runs_under_autocast(device: Device, _: Path) -> None:
    """Under the caller's autocast a guarded model gives what a plain one gives."""
    prompt = torch.arange(20, 36, device=device.name)[None]
    model, answers = model_on(device, torch.float32), []
    for _turn in range(2):
        with torch.no_grad(), torch.autocast(torch.device(device.name).type, dtype=torch.float16):
            answers.append(model(input_ids=prompt).logits)
        guard(model)
    assert answers[0].dtype == answers[1].dtype
    assert torch.equal(*answers)
    assert not report(model).events


CHECKS: tuple[Callable[[Device, Path], None], ...] = (
    fails_at_a_step, is_nan_at_a_step, is_nan_while_sampling, has_a_static_cache, draws_as_plain, waits_as_plain,
    has_no_room, is_rescued, runs_under_autocast,
)  # fmt: skip
