"""A bfloat16 model that float16 cannot hold, rescaled into it, beside bfloat16, plain float16 and float32."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import engineered  # type: ignore[import-not-found]  # models that overflow, made for the tests
import torch
import transformers as tf

from safe_dtype import SafeAutoModelForCausalLM, plan_of, report

from .place import Place, Row, generate, memory_peak, prompt_of, seconds, seconds_per_token, shape_of

_PROMPTS, _PROMPT_TOKENS, _HELD_OUT = 8, 96, 4711  # the last is a seed


def rows(place: Place) -> Iterator[Row]:
    """Yield a row for each shape and way: distance from float32, speed, memory, seconds of the load."""
    for shape in place.shapes:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            engineered.engineered_on(place.device, "qwen3", shape_of(shape)).to(torch.bfloat16).save_pretrained(folder)
            gc.collect()
            yield {"shape": shape, "way": "made and saved", "load_s": time.perf_counter() - started}
            truth: list[torch.Tensor] = []
            for way, load in _WAYS.items():
                yield {"shape": shape, "way": way, **_measured(place, Path(folder), load, truth)}


def _measured(place: Place, folder: Path, load: Callable[[Path, str], Any], truth: list[torch.Tensor]) -> Row:
    """Load, compare and time one way, alone on the device. The first fills `truth`: its logits, on the host."""
    gc.collect()
    with memory_peak(place) as peak:
        models: list[Any] = []
        loading = seconds(place, lambda: models.append(load(folder, place.device).eval()))
        load_peak, (model,) = peak(), models
    logits = _logits(place, model)
    truth.extend(() if truth else logits)
    prompt, tokens = prompt_of(place, model, place.count(512, 16)), place.count(64, 9)
    with memory_peak(place) as peak:
        prefill = seconds(place, lambda: generate(model, prompt, 1))
        token = seconds_per_token(place, model, prompt, tokens)
        run_peak = peak()
    plan = plan_of(model) if load in (_ours, _chosen) else None
    return {
        **_closeness(place, truth, logits), "tokens_per_s": 1 / token, "prefill_s": prefill, "load_s": loading,
        "weights_bytes": sum(parameter.nbytes for parameter in model.parameters()), "load_peak_bytes": load_peak,
        "run_peak_bytes": run_peak, **(_plan_words(plan, model) if plan else {}),
    }  # fmt: skip


def _plan_words(plan: Any, model: Any) -> Row:
    events = [str(event) for event in report(model).events]
    return {"plan": f"{plan.storage}: {plan.reason}", "rescale": str(plan.rescale or ""), "events": events}


@torch.inference_mode()
def _logits(place: Place, model: Any) -> list[torch.Tensor]:
    """Return the logits of prompts that nothing was calibrated on, each of shape (tokens, vocabulary), on the host."""
    prompts = engineered.prompts(
        "qwen3", count=place.count(_PROMPTS, 2), tokens=place.count(_PROMPT_TOKENS, 16), seed=_HELD_OUT,
        vocab_size=model.config.vocab_size,
    )  # fmt: skip
    return [model(input_ids=prompt["input_ids"].to(place.device)).logits[0].float().cpu() for prompt in prompts]


def _closeness(place: Place, truth: list[torch.Tensor], logits: list[torch.Tensor]) -> Row:
    """Compare position by position, on the device; KL is in nats, None where a position is not finite."""
    kls, agreed, finite = [], [], []
    for expected, actual in zip(truth, logits, strict=True):
        wanted, had = (side.to(place.device).log_softmax(-1) for side in (expected, actual))
        kls.append((wanted.exp() * (wanted - had)).sum(-1).clamp(min=0).cpu())
        agreed.append((expected.argmax(-1) == actual.argmax(-1)).float())
        finite.append(actual.isfinite().all(-1).float())
    kl = torch.cat(kls)
    return {
        "kl_median": float(kl.median()) if kl.isfinite().all() else None,
        "top1_agreement": float(torch.cat(agreed).mean()), "finite_share": float(torch.cat(finite).mean()),
    }  # fmt: skip


def _plain(dtype: torch.dtype) -> Callable[[Path, str], Any]:
    return lambda folder, device: tf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device)


def _ours(folder: Path, device: str) -> Any:
    return SafeAutoModelForCausalLM.from_pretrained(folder, dtype="float16", device_map=device)


def _chosen(folder: Path, device: str) -> Any:
    return SafeAutoModelForCausalLM.from_pretrained(folder, device_map=device)


_WAYS: dict[str, Callable[[Path, str], Any]] = {
    "float32": _plain(torch.float32),
    "float16, safe_dtype": _ours,
    "float16, safe_dtype, second load": _ours,
    "bfloat16": _plain(torch.bfloat16),
    "float16": _plain(torch.float16),
    "safe_dtype's own choice": _chosen,
}
