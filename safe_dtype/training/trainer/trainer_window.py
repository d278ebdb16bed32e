"""The micro-batches of one optimizer step of a Trainer: run as they come, and again all together where one has failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from ...errors.of_the_moment import is_of_communication
from ...guarding.classify import text_of
from ...guarding.families.refused import is_lost
from ..memory.model_call import ModelCall
from ..precision_guard import PrecisionGuard
from ..random_numbers import RandomNumbers
from ..window_attempt import WindowAttempt
from .micro_batch_parts import MicroBatchParts, why_not_split
from .one_norm import OneNorm
from .own_counters import OwnCounters
from .step_inputs import StepInputs

TrainingStep = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class _MicroBatch:
    """What `training_step` was called with, and when."""

    model: Any
    inputs: StepInputs
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    accumulation: int  # of its epoch, which a plain loss is divided by
    numbers: RandomNumbers | None  # where some have been drawn since the micro-batch before it


class TrainerWindow:
    """`training_step` of one Trainer, around the one that it had.

    The Trainer clips and steps after the micro-batch that reduces gradients. That one returns when the loss and the
    gradients of the whole window are finite on every rank, in whatever dtype; then nothing of it is run again.
    """

    def __init__(self, trainer: Any, training_step: TrainingStep, note: Callable[[], None]) -> None:
        self._trainer, self._training_step = trainer, training_step
        self._note = note  # called after a window in which something has failed
        self._counters, self._parts = OwnCounters(trainer), MicroBatchParts()
        self._writes_inputs = True  # the step, to their tensors, as far as windows have shown
        self.guard: PrecisionGuard | None = None  # while `train()` runs
        self.norm: OneNorm | None = None  # as well
        self._micro_batches: list[_MicroBatch] = []
        self._attempts: Iterator[WindowAttempt] = iter(())
        self.look: Callable[[ModelCall], None] | None = None  # called before the first micro-batch of a run
        self._attempt: WindowAttempt | None = None  # the first one, while its micro-batches come
        self._error: Exception | None = None  # that it has ended with, until all of its micro-batches have come
        self._has_failed = False
        self._ended: RandomNumbers | None = None  # random numbers, after the micro-batch before
        self._calls_back = False  # between two micro-batches

    def close(self) -> None:
        """End a run: nothing of a window that is not through is left, and nothing is guarded until the next run begins."""
        self._leave(GeneratorExit())
        self._micro_batches.clear()
        if self.norm is not None:
            self.norm.remove()
        self.guard = self.norm = None

    def __call__(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run a micro-batch, forward and backward; return its loss for the log."""
        guard = self.guard
        if guard is None:
            return self._training_step(model, inputs, *args, **kwargs)
        is_last = self._trainer.accelerator.sync_gradients
        if self._micro_batches and self._reduces_once():
            guard.program_ran()  # the Trainer, which gathers what it counts between micro-batches, on all ranks
        micro_batch = _MicroBatch(
            model, StepInputs(inputs, copies_tensors=self._writes_inputs), args, kwargs,
            self._trainer.current_gradient_accumulation_steps, self._drawn_between(),
        )  # fmt: skip
        if not self._micro_batches:
            guard.memory.accumulation = self._trainer.args.gradient_accumulation_steps
            guard.memory.why_not_split = lambda: why_not_split(
                self._trainer, micro_batch.inputs.again(), micro_batch.args, micro_batch.kwargs
            )
            self._look_at(model, inputs)
            self._open(guard)
        else:
            self._logged.follow(len(self._micro_batches))
        self._micro_batches.append(micro_batch)
        try:
            loss = self._run_first(micro_batch, inputs, is_last=is_last)
            if loss is None and (is_last or not guard.has_peers):
                loss = self._replay(is_last=is_last)
        except BaseException:
            self._micro_batches.clear()
            raise
        if is_last:
            if self._has_failed:
                self._note()
            self._writes_inputs = any(one.inputs.are_changed for one in self._micro_batches)
            self._micro_batches.clear()
        if not is_last and self._error is None and self._may_draw():
            self._ended = RandomNumbers()
        return self._nothing() if loss is None else loss

    def _may_draw(self) -> bool:
        """Whether the program may draw random numbers before the next micro-batch: in a callback, or where an epoch ends."""
        return self._calls_back or len(self._micro_batches) >= self._trainer.current_gradient_accumulation_steps

    def _drawn_between(self) -> RandomNumbers | None:
        """Return the random numbers of now, where the program has drawn some since the micro-batch before this one."""
        ended, self._ended = self._ended, None
        return RandomNumbers() if self._micro_batches and ended is not None and ended.have_moved() else None

    def _look_at(self, model: Any, inputs: Any) -> None:
        look, self.look = self.look, None
        if look is not None and isinstance(inputs, Mapping):
            # Not `_prepare_inputs`: in subclasses it generates, and counts.
            look(ModelCall(model, (), self._trainer._prepare_input(dict(inputs))))

    def _open(self, guard: PrecisionGuard) -> None:
        self._counters.forget()
        self._error, self._has_failed = None, False
        guard.expect(self._trainer.current_gradient_accumulation_steps)
        self._logged = _LoggedLoss(self._trainer)
        callbacks = self._trainer.callback_handler.callbacks
        self._calls_back = any(type(one).on_substep_end is not TrainerCallback.on_substep_end for one in callbacks)
        self._attempts = guard.attempts()
        self._attempt = next(self._attempts).__enter__()

    def _run_first(self, micro_batch: _MicroBatch, inputs: Any, *, is_last: bool) -> torch.Tensor | None:
        """Run a micro-batch in the first attempt. Return None where that attempt has failed, now or before."""
        attempt = self._attempt
        if attempt is None or (self._error is not None and not is_last):
            return None
        try:
            if self._error is not None:
                raise self._error
            loss = self._run(micro_batch, inputs)
            if is_last:
                self._vote(attempt, micro_batch)
        except BaseException as exc:
            if (
                not is_last
                and self._reduces_once()
                and getattr(micro_batch.model, "require_backward_grad_sync", False)
            ):
                # That which ends an epoch early: the others wait in its reduction, and then go on without a vote.
                self._leave(GeneratorExit())
                raise
            if isinstance(exc, Exception) and not is_last and self._reduces_once() and _lets_go_on(exc):
                self._error = exc
                return None
            if not self._leave(exc):
                raise
            return None
        if is_last:
            self._leave(None)
            next(self._attempts, None)
        return loss

    def _reduces_once(self) -> bool:
        """Whether there are other ranks, which a rank that fails meets with the last micro-batch, and not before."""
        return self.guard is not None and self.guard.has_peers and not self._syncs_each_batch()

    def _syncs_each_batch(self) -> bool:
        return bool(self._trainer.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False))

    def _vote(self, attempt: WindowAttempt, micro_batch: _MicroBatch) -> None:
        computed = self.norm.compute(micro_batch.model) if self.norm is not None else None
        if computed is not None:
            attempt.norm(*computed)
        attempt.step()

    def _leave(self, error: BaseException | None) -> bool:
        """Leave the first attempt; return whether another one is to follow."""
        attempt, self._attempt = self._attempt, None
        if attempt is None:
            return False
        return attempt.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _replay(self, *, is_last: bool) -> torch.Tensor:
        """Run the micro-batches that have come until they are through; return the loss of the latest, to be added to the log.

        With the last of its window that is voted on; else the attempt stays open for the rest.
        """
        self._has_failed = True
        for attempt in self._attempts:
            self._attempt = attempt.__enter__()
            try:
                losses = self._run_again(is_last=is_last)
                if is_last:
                    self._vote(attempt, self._micro_batches[-1])
            except BaseException as exc:
                if not self._leave(exc):
                    raise
            else:
                if not is_last:
                    break
                self._leave(None)
        return self._logged.last(losses)

    def _run_again(self, *, is_last: bool) -> list[torch.Tensor]:
        """Run the micro-batches that have come, and return their losses."""
        gradients, losses = self._trainer.accelerator.gradient_state, []
        self._counters.take_back()
        for place, micro_batch in enumerate(self._micro_batches):
            reduces = is_last and place == len(self._micro_batches) - 1
            gradients._set_sync_gradients(reduces)
            if micro_batch.numbers is not None:
                micro_batch.numbers.set_again()
            with nullcontext() if reduces else self._without_reduction(micro_batch.model):
                losses.append(self._run(micro_batch, micro_batch.inputs.again()))
        return losses

    def _run(self, micro_batch: _MicroBatch, inputs: Any) -> torch.Tensor:
        *others, last = self._parts.of(inputs, self.guard.memory.parts if self.guard is not None else 1)
        self._trainer.current_gradient_accumulation_steps = micro_batch.accumulation
        with self._counters.counting():
            losses = []
            for part in others:
                with self._without_reduction(micro_batch.model):
                    losses.append(self._step(micro_batch, part))
            return sum(losses, self._step(micro_batch, last))

    def _step(self, micro_batch: _MicroBatch, inputs: Any) -> torch.Tensor:
        return self._training_step(micro_batch.model, inputs, *micro_batch.args, **micro_batch.kwargs)

    def _without_reduction(self, model: Any) -> AbstractContextManager[Any]:
        """Return the context in which the Trainer runs micro-batches that are not the last of their window."""
        if self._syncs_each_batch():
            return nullcontext()
        return self._trainer.accelerator.no_sync(model)  # type: ignore[no-any-return]

    def _nothing(self) -> torch.Tensor:
        """Return what is added to the log for a micro-batch that will run again."""
        return torch.zeros((), device=self._trainer.args.device)


def _lets_go_on(error: Exception) -> bool:
    """Whether the Trainer can come to the last micro-batch after it: not without its device, nor without the other ranks."""
    return not is_lost(text_of(error)) and not is_of_communication(error)


class _LoggedLoss:
    """The sum of losses that the Trainer will log next: of a window that failed nothing stays in it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._sum: torch.Tensor = trainer._tr_loss
        self._begin(0)

    def _begin(self, place: int) -> None:
        self._before, self._first = self._sum.clone(), place
        self._step = self._trainer._globalstep_last_logged

    def follow(self, place: int) -> None:
        """Begin anew with the micro-batch of this place, where what came before is in a row of the log already."""
        if self._trainer._globalstep_last_logged != self._step:
            self._begin(place)

    def last(self, losses: list[torch.Tensor]) -> torch.Tensor:
        """Put the losses of a window into the sum, but for the last one, which is returned: the Trainer adds it."""
        self._sum.copy_(self._before)
        trainer = self._trainer
        for loss in losses[self._first : -1]:
            if trainer.args.logging_nan_inf_filter and not loss.isfinite():  # as the Trainer adds them
                self._sum += self._sum / (1 + trainer.state.global_step - trainer._globalstep_last_logged)
            else:
                self._sum += loss
        return losses[-1]
