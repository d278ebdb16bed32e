"""The watch over one run of transformers' sampling loop: it learns what is bad by the loop's own look at who has ended.

At each token that loop asks the device once whether all rows have ended, and waits for the answer. The criteria that say so
are wrapped here: where the numbers of the step were none they say that all rows have ended, so the loop stops at that very
token, and nothing more was read than without a guard.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from ..recover import TriedRemedies
from ..state import CALL, Guard, here
from ..step import RestartNeededError
from .held_streamer import HeldStreamer
from .judged_later import UnreadStep
from .random_state import random_state, set_random_state
from .reasons import SamplingLoop, stops_late


class SpoiledBeforeError(Exception):
    """A step failed in a loop that runs one step ahead, and the step before it had failed already."""


@dataclass(eq=False)
class LoopStep:
    """One turn of the loop, from the call of the model to a token, and what is needed to begin it again."""

    number: int  # of the generation's steps
    is_first: bool = False  # it reads the prompt
    run: UnreadStep | None = None  # of the model; None: it was looked at where it was made
    kwargs: dict[str, Any] | None = None  # of the loop, before it counted this step in
    tokens: torch.Tensor | None = None  # of shape (batch, length), before this step's own
    random: torch.Tensor | None = None  # the state of the generator before the token was drawn
    ended: torch.Tensor | None = None  # bool, (batch,): which rows had ended before; None where none can have
    is_spoiled: torch.Tensor | None = None  # a bool without dimensions, on the device of the tokens


class LoopWatch:
    """What is known of a running sampling loop. Hand `processors`, `criteria` and `streamer` to the loop.

    Args:
        guard: The guard of the model.
        loop: What the loop is called with.
    """

    def __init__(self, guard: Guard, loop: SamplingLoop) -> None:
        self.processors = _WatchedProcessors(loop.processors, self)
        self.criteria = _WatchedCriteria(loop.criteria, self)
        self.streamer = HeldStreamer(loop.streamer) if loop.streamer is not None else None
        self.model = loop.model
        self.handed_over: Any = None  # the output of a step that was run again, for the loop to begin with
        self._guard, self._config = guard, loop.config
        self._device = loop.tokens.device
        self._around = len(here.running)
        self._can_have_ended = loop.tokens.shape[0] > 1  # with one row the loop is over when that has ended
        self._ahead = 1 if stops_late(self._device) else 0
        self._stays_at_once = False
        # A prompt may go in in several calls, and the loop reads nothing between them.
        self._is_late = loop.config.prefill_chunk_size is None  # the verdict on the step that runs is read later
        self._rerun_with: int | None = None  # of the step that runs again, the guard's version when it failed
        self._now = LoopStep(here.step, is_first=True)
        self._judged_next: deque[LoopStep] = deque()  # with a token, but nobody has read whether it is one
        self._ended: torch.Tensor | None = None

    def takes_step(self) -> bool:
        """Whether the step that this thread is in is one of the loop's own, and is judged later."""
        steps = here.running
        return (
            self._is_late
            and len(steps) == self._around + 1
            and steps[-1][0] is self._guard
            and steps[-1][1] is self.model
            and steps[-1][2] is CALL
        )

    def take(self, step: UnreadStep, is_spoiled: torch.Tensor) -> bool:
        """Remember a step that is judged later. False: the loop could not begin again with it."""
        if self._now.run is not None:
            return False
        self._now.run = step
        self._now.is_spoiled = is_spoiled.to(self._device, non_blocking=True)
        return True

    def look_at_once(self) -> None:
        """Judge all until the next token where it is made.

        Raises:
            SpoiledBeforeError: If a step before had failed, which the loop would have learned one step later.
        """
        self._is_late = False
        if any(step.is_spoiled is not None and bool(step.is_spoiled) for step in self._judged_next):
            raise SpoiledBeforeError

    def before_update(self, kwargs: dict[str, Any]) -> None:
        """Remember the arguments of the loop as the step found them; it counts the step in afterwards."""
        if self._now.kwargs is None:
            self._now.kwargs = dict(kwargs)

    def before_selection(self, tokens: torch.Tensor, scores: torch.Tensor) -> None:
        """Make `scores` safe to draw from, on the device: probabilities of NaN would end a CUDA context."""
        step = self._now
        step.tokens = tokens
        if step.is_spoiled is not None and self._config.do_sample:
            step.random = random_state(self._device)
            scores.masked_fill_(step.is_spoiled, 0.0)

    def after_selection(self, tokens: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Return which rows end: all of them where the numbers of the step were none."""
        step = self._now
        step.ended = self._ended
        if self._rerun_with is not None:
            # What no remedy has cured is likely to come again: it would be found twice at every token.
            self._stays_at_once = self._stays_at_once or self._rerun_with == self._guard.version
            self._rerun_with = None
            if step.ended is not None:
                self._pad(tokens, step.ended)
                done = done | step.ended
        self._is_late = not self._stays_at_once
        if self._can_have_ended:
            self._ended = done if self._ended is None else self._ended | done
        self._judged_next.append(step)
        self._now = LoopStep(here.step)
        return done if step.is_spoiled is None else done | step.is_spoiled

    def goes_on(self) -> None:
        """Forget what the loop has found to be sound: it goes on."""
        while len(self._judged_next) > self._ahead:
            self._judged_next.popleft()
        if self.streamer is not None:
            self.streamer.release()

    def failed_step(self, output: Any) -> LoopStep | None:
        """Return the step whose numbers have ended the loop, after all that came later was taken back. Reads once.

        `output` is what the loop has returned.
        """
        tokens = output["sequences"] if isinstance(output, dict) else output
        while self._judged_next:
            step = self._judged_next.pop()
            assert step.tokens is not None
            is_last = step.tokens.shape[1] < tokens.shape[1]
            if is_last and (step.is_spoiled is None or not bool(step.is_spoiled)):
                return None
            if is_last:
                return step
            self._roll_back(step)
        return None

    def first_failed(self) -> LoopStep:
        """Return the step that had failed when `SpoiledBeforeError` was raised."""
        return next(step for step in self._judged_next if step.is_spoiled is not None and bool(step.is_spoiled))

    def begin_again(self, step: LoopStep) -> None:
        """Bring everything back to where `step` began; it is looked at while it runs again.

        Raises:
            RestartNeededError: If something cannot be brought back. Nothing was cured: the generation is to be begun anew,
                with every step looked at where it is made.
        """
        run = step.run
        assert run is not None
        if not self._roll_back(step):
            raise RestartNeededError(TriedRemedies())
        if step.random is not None:
            set_random_state(self._device, step.random)
        if self.streamer is not None:
            self.streamer.drop_last()
        self._judged_next.clear()
        self._is_late = False
        here.step = step.number
        self._now = LoopStep(step.number, step.is_first)
        self._ended = step.ended
        self._rerun_with = run.version  # another thread may have cured the model since
        if self.streamer is not None and step.ended is not None and self._pads:
            self.streamer.padded = (step.ended, self._config._pad_token_tensor)

    def _roll_back(self, step: LoopStep) -> bool:
        run = step.run
        return run is None or run.snapshot.roll_back(recast=self._guard.version != run.version)

    @property
    def _pads(self) -> bool:
        return any(hasattr(criterion, "eos_token_id") for criterion in self.criteria)

    def _pad(self, tokens: torch.Tensor, ended: torch.Tensor) -> None:
        """Pad rows that had ended: a loop that is begun again takes all rows for running ones at its first step."""
        if self._pads:
            last = tokens[:, -1]
            last.copy_(torch.where(ended, self._config._pad_token_tensor.to(last.device, last.dtype), last))


class _WatchedProcessors(LogitsProcessorList):  # type: ignore[misc]  # transformers has no types
    def __init__(self, processors: Any, watch: LoopWatch) -> None:
        super().__init__(processors)
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> Any:
        self._watch.before_selection(input_ids, scores)
        return super().__call__(input_ids, scores, **kwargs)


class _WatchedCriteria(StoppingCriteriaList):  # type: ignore[misc]  # transformers has no types
    def __init__(self, criteria: Any, watch: LoopWatch) -> None:
        super().__init__(criteria)
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return self._watch.after_selection(input_ids, super().__call__(input_ids, scores, **kwargs))
