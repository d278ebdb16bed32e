"""A guarded window of training: what fails in it is run again in another precision, on all ranks, and no step is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from torch import nn

from ..errors import DeviceLostError, PeerLostError, RemoteFailure, TrainingLoopError
from ..errors.of_the_moment import is_of_memory
from ..errors.warn import warn
from ..facts import FLOAT16, FLOAT32, Dtype, dtype_named
from ..guarding import Event, FailureKind
from ..guarding.classify import text_of
from ..guarding.diagnosis import is_vetoed
from ..guarding.events import hand_on
from ..guarding.families.refused import is_lost
from ..ranks import Vote, VoteTally, World, current_world, is_first_rank
from ..ranks.schedule import OutOfStepError, Schedules
from .accelerate_loop import adapt_loop
from .error_trial import passes_further_down
from .half_products.rescale_rung import RescaleRung
from .half_products.rescaled_products import RescaledProducts
from .judge_error import described, judge_error, module_in, note_that_others_wait
from .judge_numbers import Judgement, Numbers, forget_gradients, judge, judge_raised
from .kept_buffers import ChangedWithoutCopyError, KeptBuffers
from .ladder import LADDER, leave_failed_dtypes, refuse_half_parameters, rungs
from .loop import Loop
from .memory.step_memory import StepMemory
from .mistakes.check_arguments import require_batches, require_names, require_scale, require_state
from .mistakes.open_window import OpenWindow
from .mistakes.other_scalers import other_scalers_refused
from .random_numbers import RandomNumbers
from .settling.kept_gradients import KeptGradients
from .settling.next_attempt import NextAttempt
from .settling.own_autocasts import OwnAutocasts
from .settling.window_vote import WindowVotes
from .torch_loop import TorchLoop
from .window import Window, windows_of
from .window_attempt import WindowAttempt

logger = logging.getLogger(__name__)

_NOT_REDUCED = (  # what is wrong, and what to do
    "no model that the guard of several ranks was given reduces its gradients over them",
    "give it what accelerator.prepare() has returned; a model that `prepare_model(evaluation_mode=True)` gets first is put "
    "into no DistributedDataParallel",
)
_numbers = count()  # of guards: all ranks make them at the same points


class PrecisionGuard:
    """Runs each window of training, the micro-batches of one optimizer step, until it is fit for the step.

        guard = PrecisionGuard(accelerator, model)       # model: what accelerator.prepare() has returned
        for window in guard.windows(loader, 4):          # as in Accelerator(gradient_accumulation_steps=4)
            for attempt in guard.attempts():
                with attempt:
                    for batch in window:
                        with accelerator.accumulate(model):
                            loss = model(**batch).loss
                            accelerator.backward(loss)
                            if accelerator.sync_gradients:
                                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                            optimizer.step()
                            scheduler.step()
                            optimizer.zero_grad()

    Before the first `optimizer.step()` of a window all ranks vote. An exception that is one of dtypes, a loss or a
    gradient that is not finite, on any rank: then nobody steps, and all run the window again from its first micro-batch,
    with the same random numbers, in the next dtype of the ladder; or in float16 with half the loss scale, where gradients
    alone overflow, or with those products scaled that overflow with every scale. After the vote nothing runs again. Any
    other exception comes out on its rank, and as `RemoteFailure` on all others. In plain torch a `TorchLoop` takes the
    place of the Accelerator.

    Every rank has to make its guard at the same point of the program. It begins in the first dtype in which no rank has
    failed for good before: see `safe_dtype.ranks.restarting`.

    Args:
        loop: An `accelerate.Accelerator`, or a `TorchLoop`.
        models: With accelerate: the prepared models. With several ranks they are needed.
        ladder: The dtypes to train in, best first; those before the one in which training begins are left out.
        least_scale: Of float16's loss: where it would be halved further, the next dtype follows.
        init_scale: Of float16's loss, with accelerate; None: what the Accelerator says.
        max_memory: Bytes that this process may hold, by device, as accelerate takes them: for a step down to float32.
        rescales: Whether products that overflow in float16 are scaled before the next dtype follows.

    Attributes:
        events: What has failed, and how it went on.
        windows_done: How many windows are through.

    Raises:
        HalfParametersError: If parameters under an optimizer are 16 bits wide.
        NeedsRestart: If the precision is built into an engine.
        ValueError: If `max_memory` is no table of sizes.
    """

    def __init__(
        self,
        loop: Any,
        *models: nn.Module,
        ladder: Sequence[Dtype] = LADDER,
        least_scale: float = 1.0,
        init_scale: float | None = None,
        max_memory: Mapping[Any, Any] | None = None,
        rescales: bool = True,
    ) -> None:
        self.loop: Loop = adapt_loop(loop, models, init_scale)
        refuse_half_parameters(self.loop.optimizers)
        rungs(self.loop.dtype, ladder)
        self._ladder = tuple(ladder)
        require_scale("least_scale", least_scale)
        self._least_scale = least_scale
        self._world: World | None = current_world()
        self.has_peers = self._world is not None
        self._schedules = Schedules(() if self._world is None else self.loop.models)
        if self._world is not None and not self._schedules and not isinstance(loop, TorchLoop):
            raise TrainingLoopError(*_NOT_REDUCED)
        leave_failed_dtypes(self.loop, self._world, self._ladder)
        self._buffers = KeptBuffers(self.loop.models)
        self.memory = StepMemory(self.loop, self._world, max_memory)
        self._votes = WindowVotes(self._world, next(_numbers))
        self._products = RescaledProducts(self.loop.models)
        self.autocasts = OwnAutocasts(self.loop.models)
        self._next = NextAttempt(
            self.loop,
            self._ladder,
            RescaleRung(self._products, self._world, least_scale),
            self.memory.has_room if rescales else None,
            self.autocasts,
        )
        self._is_last: bool | None = None
        self._open = OpenWindow()
        self._gradients = KeptGradients(self.loop, lambda: self._open.is_open)
        self._attempt: WindowAttempt | None = None  # the latest
        self.events: list[Event] = []
        self.windows_done = 0

    @property
    def dtype(self) -> Dtype:
        """What the models compute in now."""
        return self.loop.dtype

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold for a run that goes on from it as this one would have: plain values.

        `accelerator.register_for_checkpointing(guard)` has accelerate store it.
        """
        scaler = self.loop.scaler
        return {
            "dtype": self.dtype.name,
            "scaler": None if scaler is None else scaler.state_dict(),
            "windows_done": self.windows_done,
            "pardons_losses": self.pardons_losses,
            "rescaled": list(self.rescaled),
            "own_autocasts_off": self.autocasts.are_off,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the guard would have that gave `state`, on every rank, before the first window, or between two.

        In its dtype, where that is further down the ladder than the one that this loop has come to, and with its loss scale.

        Raises:
            KeyError, TypeError, UnknownDtypeError: If `state` is not of a guard. Nothing was changed.
            TrainingLoopError: If an attempt is running. Nothing was changed.
        """
        require_state(state)
        if self._attempt is not None and self._attempt.is_running:
            raise TrainingLoopError(
                "`load_state_dict` was called inside of an attempt", "call it before the first window"
            )
        dtype, scaler = dtype_named(state["dtype"]), state["scaler"]
        done, pardons = int(state["windows_done"]), bool(state["pardons_losses"])
        if dtype in rungs(self.dtype, self._ladder)[1:]:
            self.loop.switch(dtype)
        elif self.dtype != dtype and self.events:
            note = "and stays there. Next: make loop and guard anew to begin in the dtype of the checkpoint"
            warn(f"The state is of a run in {dtype}. This one has come down to {self.dtype}, {note}")
        if self.dtype == dtype and self.loop.scaler is not None and scaler:
            self.loop.scaler.load_state_dict(dict(scaler))
        self.windows_done, self.pardons_losses = done, pardons
        self.rescale(state.get("rescaled", ()) if self.dtype == dtype else ())
        self.autocasts.are_off = bool(state.get("own_autocasts_off", False))

    @property
    def pardons_losses(self) -> bool:
        """Whether losses that are not finite are left alone where all gradients are finite."""
        return self._next.pardons_losses

    @pardons_losses.setter
    def pardons_losses(self, pardons: bool) -> None:
        self._next.pardons_losses = pardons

    @property
    def rescaled(self) -> tuple[str, ...]:
        """The linear layers whose products are scaled in float16, by powers of two: names as in `named_modules()`."""
        return self._products.names

    def rescale(self, names: Collection[str]) -> None:
        """Scale the float16 products of these linear layers, and of no others, from the next attempt on, on every rank.

        Names of what is no plain linear layer of the models are left out, and logged.

        Raises:
            TypeError: If `names` are none: one alone goes into a list.
        """
        require_names(names)
        self._products.scale(names)

    def windows(self, batches: Iterable[Any], size: int = 1) -> Iterator[Window]:
        """Yield `batches` in windows of `size` micro-batches; the last one may have fewer.

        `accelerator.accumulate` and `TorchLoop.accumulate` reduce gradients with the last micro-batch of each.
        """
        require_batches(batches, size)
        for window in windows_of(batches, size, self._note_place):
            self.memory.accumulation = len(window)
            self._schedules.sees(window)
            yield window

    def expect(self, micro_batches: int) -> None:
        """Note how many micro-batches the next window has, where it is not one of `windows`."""
        self._schedules.sees(range(micro_batches))

    def program_ran(self) -> None:
        """Note that the program has run collectives between two micro-batches, which a rank that failed runs as well."""
        self._schedules.program_ran()

    def attempts(self) -> Iterator[WindowAttempt]:
        """Yield attempts at one window until one is through: each is a context around its passes and its step.

        Raises:
            NoDtypeLeft: If the window fails in the last dtype as well, and not in its loss alone: weights and optimizer are
                as before it.
            TrainingDoesNotFitError: If float32, the next dtype, does not fit, not with activation checkpointing either; or
                if the system would end the process for the first step.
            RemoteFailure: If another rank has failed otherwise.
            PeerLostError: If another rank has ended, or does not vote.
            TrainingLoopError: If the loop cannot be run again.
        """
        self._next.begin()
        self._open.allow()
        place, numbers = self.loop.place(), RandomNumbers()
        self._buffers.keep()
        while True:
            self._schedules.begin()
            self._gradients.begin()
            around, dtype = self._schedules.around(), self.dtype
            around += [self._buffers.noticed(), other_scalers_refused(self.loop)]
            if dtype == FLOAT16:
                around.append(self._products.in_force())
            if dtype == FLOAT32:
                around.append(self.autocasts.in_force())
            around += self.memory.around(dtype)
            attempt = WindowAttempt(self.loop, self, lambda: self._is_last, self._schedules, around)
            self._is_last, self._attempt = None, attempt
            try:
                yield attempt
            finally:  # also where the loop is left by `return` or `break`
                if attempt.is_done:
                    self._open.ends(self.loop.optimizers, has_stepped=attempt.has_stepped)
                    self.windows_done += attempt.has_stepped
                    self.memory.window_ended(has_stepped=attempt.has_stepped)
            if not attempt.was_entered:
                self.leave()
                raise TrainingLoopError("an attempt was not entered")
            if attempt.is_done:
                break
            if self.dtype == FLOAT32 != dtype:
                self.memory.fit()
            numbers.set_again()
            self.loop.return_to(place)

    def leave(self) -> None:
        """Stop to watch the collectives of the ranks, however the attempt has ended."""
        self._schedules.end(is_whole=False)

    def pass_begins(self) -> None:
        """Note that a backward pass begins."""
        self._gradients.before_pass()

    def numbers(self, numbers: Numbers, *, steps: bool) -> bool:
        """Whether all ranks have fit numbers; where not, everything is ready for another attempt."""
        optimizers = self.loop.optimizers if steps else ()
        # In any case: to unscale sharded gradients is a collective, too.
        judgement = judge(numbers, optimizers, self.loop.scaler if steps else None, self._least_scale)
        hidden = self._schedules.hidden_error()
        if hidden is not None:
            return self._settle(*judge_error(hidden), hidden) is Vote.OK
        is_fit = self._settle(self._next.judged(judgement), FailureKind.NONFINITE, None) is Vote.OK
        if is_fit and steps:
            self._gradients.unscaled()
        return is_fit

    def error(self, error: Exception, numbers: Numbers) -> bool:
        """Whether another attempt is to follow on `error`, after these numbers; where not, it is the caller's."""
        if is_lost(text_of(error)):
            device = next((str(p.device) for model in self.loop.models for p in model.parameters()), "the device")
            raise DeviceLostError(device, "", described(error)) from error
        self._gradients.before_end()  # before this rank runs what it owes the others, with NaN for gradients
        try:
            seconds = self._schedules.keep(error)
        except (OutOfStepError, RuntimeError) as exc:  # no vote: the others are not where it is cast
            note_that_others_wait(error, exc)
            return False
        hidden = self._schedules.hidden_error()
        try:
            return self._settle(*self._judge(hidden or error, numbers), error, seconds) is not Vote.FOREIGN
        except PeerLostError as exc:
            if seconds is None:
                raise
            note_that_others_wait(error, exc)
            return False

    def _judge(self, error: Exception, numbers: Numbers) -> tuple[Judgement, FailureKind]:
        judgement, kind = judge_error(error)
        is_foreign = judgement.vote is Vote.FOREIGN and not is_vetoed(error)
        if kind is FailureKind.NONFINITE or is_foreign:  # for gradients that were clipped, say, in whatever words
            raised = judge_raised(numbers, self.loop.optimizers, self.loop.scaler, self._least_scale)
            if raised is not None and raised.vote is Vote.RETRY:  # half the scale may be enough
                return self._next.judged(raised), FailureKind.NONFINITE
            if raised is not None and is_foreign and rungs(self.dtype, self._ladder)[1:]:
                return Judgement(Vote.FALL_BACK, f"{judgement.reason} ({raised.reason})"), FailureKind.NONFINITE
        if self._products.is_watching and is_of_memory(error):  # of the attempt that takes more of it
            return Judgement(Vote.FALL_BACK, judgement.reason), FailureKind.NONFINITE
        if judgement.vote is Vote.FOREIGN and self._next.has_other_products and not is_vetoed(error):
            # What the program does with a float32 output, and did not with a float16 one; else it comes again in float32.
            return Judgement(Vote.FALL_BACK, judgement.reason), FailureKind.DTYPE_MISMATCH
        if judgement.vote is Vote.FOREIGN:
            dtype = passes_further_down(self.loop.models, error, self.dtype, rungs(self.dtype, self._ladder)[1:])
            if dtype is not None:
                judgement = Judgement(Vote.FALL_BACK, f"{judgement.reason} (by itself the module passes in {dtype})")
        return judgement, kind

    def _settle(
        self, judgement: Judgement, kind: FailureKind, error: Exception | None, seconds: float | None = None
    ) -> Vote:
        """Vote, and do what the vote says; return what it was. FOREIGN: the error is that of this rank."""
        since = time.perf_counter()
        vote, kind, reason = self._votes.cast(judgement, kind, error, seconds)
        self._schedules.end(is_whole=vote.vote is Vote.OK)
        if vote.vote is Vote.OK or (vote.vote is Vote.FOREIGN and self._world is None):
            return vote.vote
        self._schedules.reset()
        self._gradients.before_end()
        forget_gradients(self.loop.models, self.loop.optimizers, self.loop.scaler)
        self._gradients.put_back()
        if vote.vote is Vote.FOREIGN:
            if judgement.vote is Vote.FOREIGN:
                return vote.vote
            raise RemoteFailure(vote.rank, reason) from error
        if self._open.is_open:
            raise TrainingLoopError(f"{reason}, and earlier attempts have left gradients for the same step") from error
        try:
            self._buffers.put_back()
        except ChangedWithoutCopyError as exc:
            raise TrainingLoopError(f"{reason}, and it cannot be run again: {exc}") from error
        self._go_on(vote, kind, reason, error, since)
        return vote.vote

    def _go_on(self, tally: VoteTally, kind: FailureKind, reason: str, error: Exception | None, since: float) -> None:
        before, step, was = self.dtype, self.windows_done, (self.dtype, self.rescaled, self.autocasts.are_off)
        module = module_in(self.loop.models, error)
        remedy = self._next.after(tally, kind, reason, error, step=step)
        if remedy is None:
            logger.info("step %d in %s runs again to show which products overflow: %s", step, before, reason)
            return
        milliseconds = (time.perf_counter() - since) * 1e3
        event = Event(kind, before, self.dtype, module, step, remedy, reason, milliseconds, restarted=True)
        self.events.append(event)
        if (self.dtype, self.rescaled, self.autocasts.are_off) != was and is_first_rank():
            logger.warning(
                "%s at optimizer step %d in %s: running it again %s: %s", kind, step, before, remedy, reason,
                extra={"kind": kind.value, "step": step, "before": before.name, "after": self.dtype.name},
            )  # fmt: skip
        for model in self.loop.models[:1]:
            hand_on(model, event)

    def _note_place(self, is_last: bool | None) -> None:  # noqa: FBT001  (called by position)
        self._is_last = is_last
