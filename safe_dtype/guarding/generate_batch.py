"""Continuous batching: what failed goes on request by request, from the tokens that each of them has.

Its pool of keys and values is one block of bytes, typed once, so a running one cannot change its dtype. A new one is
made for the requests that failed: prompt and tokens so far are their new prompts.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .classify import classify
from .events import changing
from .incident import Incident
from .recover import TriedRemedies, cure
from .state import Guard


def guarded_batch(
    guard: Guard, generate_batch: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `generate_batch(*args, **kwargs)`; requests that failed by their dtype are taken up again in another.

    Only exceptions are seen: the pool's tokens are drawn inside a captured graph, where NaN cannot be looked for.

    Raises:
        NoDtypeLeft: If every remedy failed.
    """
    tried = TriedRemedies()
    guard.batches += 1
    try:
        done = generate_batch(*args, **kwargs)
        while failed := _failed(done):
            key, failure = next(iter(failed.items()))
            model = guard.model()
            error = RuntimeError(done[key].error)
            if model is None:
                return done
            steps = max(len(done[name].generated_tokens) for name in failed)
            with changing(guard):
                incident = Incident(
                    guard, model, replace(failure, step=steps), time.perf_counter(), error=error, log=tried.log
                )
                if not cure(incident, tried):
                    tried.take_back(guard)
                    return done
            _forget_pool(model)
            _take_up(generate_batch, model, done, tuple(failed), args, kwargs)
        return done
    finally:
        guard.batches -= 1


def _failed(done: dict[str, Any]) -> dict[str, Any]:
    """Return the failure of every request that failed by its dtype."""
    texts = {key: request.error for key, request in done.items() if request.error is not None}
    return {key: failure for key, text in texts.items() if (failure := classify(RuntimeError(text))) is not None}


def _take_up(
    generate_batch: Callable[..., Any], model: Any, done: dict[str, Any], failed: tuple[str, ...],
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> None:  # fmt: skip
    """Generate the rest of the requests in `failed`, and put the whole of each into `done`."""
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or model.generation_config
    wanted = kwargs.get("max_new_tokens") or config.max_new_tokens
    rest = {name: value for name, value in kwargs.items() if name not in ("inputs", "generation_config")}
    by_remaining: dict[int | None, list[str]] = defaultdict(list)
    for key in failed:
        by_remaining[None if wanted is None else wanted - len(done[key].generated_tokens)].append(key)
    for remaining, keys in by_remaining.items():
        once = copy.deepcopy(config)
        once.num_return_sequences = 1  # every sequence that failed is a request of its own now
        once.max_new_tokens = remaining
        rest.pop("max_new_tokens", None)
        prompts = [[*done[key].prompt_ids, *done[key].generated_tokens] for key in keys]
        continued = list(generate_batch(prompts, once, *args[2:], **rest).values())
        for key, new in zip(keys, continued, strict=False):
            old = done[key]
            old.generated_tokens = [*old.generated_tokens, *new.generated_tokens]
            old.logprobs = [*old.logprobs, *new.logprobs]
            old.error, old.status = new.error, new.status


def _forget_pool(model: Any) -> None:
    # A persistent manager holds a pool in the old dtype.
    if hasattr(model, "_cached_continuous_batching_manager"):
        model.destroy_cached_continuous_batching_manager()
