"""What the guard adds to a prompt and to a token: time, synchronizations, launches. Plain and guarded take turns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from safe_dtype import guard, unguard

from .place import (
    Place,
    Row,
    counted,
    generate,
    medians,
    prompt_of,
    qwen3,
    seconds,
    seconds_per_token,
    warned_synchronizations,
)

_DTYPES = (torch.bfloat16, torch.float16)


def rows(place: Place) -> Iterator[Row]:
    """Yield a row for each shape, dtype and phase."""
    for shape in place.shapes:
        for dtype in _DTYPES:
            model = qwen3(place, shape, dtype)
            name = {"shape": shape, "dtype": str(dtype).removeprefix("torch.")}
            prompt = prompt_of(place, model, place.count(512, 16))
            yield {**name, "phase": "prefill", "tokens": prompt.shape[1], **_prefill(place, model, prompt)}
            yield {**name, "phase": "decode", **_decode(place, model, prompt)}
            del model


def _prefill(place: Place, model: Any, prompt: torch.Tensor) -> Row:
    def call() -> object:
        with torch.inference_mode():
            return model(input_ids=prompt, use_cache=True)

    return _in_turn(model, lambda: seconds(place, call), place.count(10, 2))


def _decode(place: Place, model: Any, prompt: torch.Tensor) -> Row:
    tokens = place.count(64, 9)
    times = _in_turn(model, lambda: seconds_per_token(place, model, prompt, tokens), place.count(3, 1))
    plain = _per_token(place, model, prompt)
    guard(model)
    guarded = _per_token(place, model, prompt)
    return times | {f"plain_{key}": value for key, value in plain.items()} | {
        f"guarded_{key}": value for key, value in guarded.items()
    }  # fmt: skip


def _in_turn(model: Any, measure: Callable[[], float], rounds: int) -> Row:
    """Return the median microseconds, plain and guarded, and of the difference between neighbours."""
    samples = []
    for _ in range(rounds + 1):
        unguard(model)
        plain = measure()
        guard(model)
        samples.append((plain, measure()))
    unguard(model)
    plain, guarded, difference = medians(samples[1:])  # the first round warms up
    return {"plain_us": plain * 1e6, "guarded_us": guarded * 1e6, "guard_us": difference * 1e6, "rounds": rounds}


def _per_token(place: Place, model: Any, prompt: torch.Tensor) -> Row:
    """Return what one token asks of the device: the difference between a long and a short generation."""
    short, long = 4, 12
    calls = [functools.partial(generate, model, prompt, tokens) for tokens in (short, long)]
    few, many = (counted(place, call) for call in calls)
    warned = [warned_synchronizations(place, call) for call in calls]

    def each(first: float | None, last: float | None) -> float | None:
        return None if first is None or last is None else (last - first) / (long - short)

    return {
        "synchronizations": each(few.synchronizations, many.synchronizations),
        "launches": each(few.launches, many.launches),
        "warned_synchronizations": each(*warned),
    }
