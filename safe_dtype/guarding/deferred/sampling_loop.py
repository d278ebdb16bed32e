"""Run transformers' sampling loop without a read of ours; where a step of it fails, go on from that step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...models.wrapped_methods import owner_of, wrap_method
from ..state import Guard, guard_of
from ..step import guarded_step
from .joined_outputs import joined
from .judged_later import this_thread
from .loop_watch import LoopStep, LoopWatch, SpoiledBeforeError
from .reasons import COUNTS_IN, SamplingLoop, reason_to_look_at_once


def guard_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `GenerationMixin._sample`, the loop of greedy search and of sampling."""

    def _sample(  # noqa: PLR0913  (the arguments are transformers')
        self: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        synced_gpus: bool = False, streamer: Any = None, **model_kwargs: Any,  # noqa: FBT001, FBT002
    ) -> Any:  # fmt: skip
        guard = guard_of(self)
        loop = SamplingLoop(
            original, self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer
        )
        around, this_thread.watch = this_thread.watch, None
        try:
            if guard is None or self.training or reason_to_look_at_once(guard, loop) is not None:
                return original(
                    self, input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer,
                    **model_kwargs,
                )  # fmt: skip
            this_thread.watch = watch = LoopWatch(guard, loop)
            _watch_loop(guard, type(self))
            run = functools.partial(
                original, self, logits_processor=watch.processors, stopping_criteria=watch.criteria,
                generation_config=generation_config, synced_gpus=synced_gpus, streamer=watch.streamer,
            )  # fmt: skip
            return _run(guard, watch, run, input_ids, model_kwargs)
        finally:
            this_thread.watch = around

    return _sample


def _run(guard: Guard, watch: LoopWatch, loop: Callable[..., Any], tokens: Any, model_kwargs: dict[str, Any]) -> Any:
    """Run the loop to its end, and begin it again with each step that failed."""
    parts: list[Any] = []
    while True:
        failed: LoopStep | None
        try:
            output = loop(tokens, **model_kwargs)
            failed = watch.failed_step(output)
        except SpoiledBeforeError:
            output, failed = None, watch.first_failed()
        if failed is None:
            if watch.streamer is not None:
                watch.streamer.end_now()
            return joined(parts, output)
        watch.begin_again(failed)
        parts.append(output)
        run = failed.run
        assert run is not None
        with nullcontext() if failed.is_first else _decoding(watch.model):
            watch.handed_over = guarded_step(guard, watch.model, run.forward, run.args, run.kwargs)
        tokens, model_kwargs = failed.tokens, failed.kwargs or {}


def _decoding(model: Any) -> AbstractContextManager[Any]:
    """Return the context in which the loop decodes: mixtures of experts are computed in another way there."""
    optimized = getattr(model, "_optimize_model_for_decode", None)
    return nullcontext() if optimized is None else optimized()


def _watch_loop(guard: Guard, model_class: type) -> None:
    """Wrap what the loop calls at each step: from the first time that a model of this class is watched in that way."""
    for name, wrap in (
        ("_prefill", _hand_over), (COUNTS_IN, _before_update),
        ("_has_unfinished_sequences", _goes_on),
    ):  # fmt: skip
        owner = owner_of(model_class, name)
        assert owner is not None
        wrap_method(owner, name, wrap, guard)


def _watch_of(model: Any) -> LoopWatch | None:
    watch = this_thread.watch
    return watch if watch is not None and watch.model is model else None


def _hand_over(original: Callable[..., Any]) -> Callable[..., Any]:
    def _prefill(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = _watch_of(self)
        if watch is None or watch.handed_over is None:
            return original(self, *args, **kwargs)
        output, watch.handed_over = watch.handed_over, None
        return output

    return _prefill


def _before_update(original: Callable[..., Any]) -> Callable[..., Any]:
    def _update_model_kwargs_for_generation(
        self: Any, outputs: Any, model_kwargs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if (watch := _watch_of(self)) is not None:
            watch.before_update(model_kwargs)
        return original(self, outputs, model_kwargs, *args, **kwargs)

    return _update_model_kwargs_for_generation


def _goes_on(original: Callable[..., Any]) -> Callable[..., Any]:
    def _has_unfinished_sequences(self: Any, *args: Any, **kwargs: Any) -> Any:
        goes_on = original(self, *args, **kwargs)
        if goes_on and (watch := _watch_of(self)) is not None:
            watch.goes_on()
        return goes_on

    return _has_unfinished_sequences
