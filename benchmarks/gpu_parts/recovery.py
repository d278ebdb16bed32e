"""A step that fails in bfloat16 in the middle of a generation, and goes on in float32: what that takes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from safe_dtype import guard, report
from safe_dtype.testing import fault

from .place import Place, Row, generate, memory_peak, prompt_of, qwen3, seconds

_FAULTS = ("cublas", "nan")


def rows(place: Place) -> Iterator[Row]:
    """Yield the time of an undisturbed generation, then of one for each kind of failure and failing step."""
    shape, tokens = place.shapes[0], place.count(64, 8)
    model = guard(qwen3(place, shape, torch.bfloat16))
    prompt = prompt_of(place, model, place.count(64, 8))
    generate(model, prompt, 2)
    undisturbed = generate(model, prompt, tokens)
    yield {"shape": shape, "fault": "none", "seconds": seconds(place, lambda: generate(model, prompt, tokens))}
    for kind in _FAULTS:
        for step in (0, tokens // 2, tokens - 1):
            yield {"shape": shape, "fault": kind, "step": step, **_recovered(place, kind, step, undisturbed)}


def _recovered(place: Place, kind: str, step: int, undisturbed: torch.Tensor) -> Row:
    """Time a generation that fails at `step`; the tokens before it are those of the undisturbed one."""
    model = guard(qwen3(place, place.shapes[0], torch.bfloat16))
    prompt = prompt_of(place, model, place.count(64, 8))
    generate(model, prompt, 2)
    module = f"model.layers.{model.config.num_hidden_layers // 2}.mlp.down_proj"
    weights = sum(parameter.nbytes for parameter in model.parameters())
    answers = []
    with memory_peak(place) as peak, fault(model, module, kind, call=step):
        duration = seconds(
            place, lambda: answers.append(generate(model, prompt, undisturbed.shape[1] - prompt.shape[1]))
        )
    before = prompt.shape[1] + step
    events = report(model).events
    return {
        "seconds": duration, "recovery_ms": sum(event.milliseconds for event in events), "events": len(events),
        "now_in": str(model.dtype).removeprefix("torch."), "weights_bytes": weights,
        "grown_bytes": sum(event.grown_bytes for event in events), "peak_bytes": peak(),
        "same_until_then": torch.equal(answers[0][:, :before], undisturbed[:, :before]),
    }  # fmt: skip
