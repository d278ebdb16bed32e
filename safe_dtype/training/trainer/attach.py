"""`attach`: a Trainer, of whatever subclass, that goes on where its precision fails."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ...devices.memory import limits_of
from ...errors import NoDtypeLeft, NotSwitchableError, PolicyError, StrictModeError, TrainingError
from ...facts import FLOAT16, FLOAT32, Dtype
from ...guarding import FailureKind
from ...planning import Policy
from ...ranks import is_first_rank
from ..evaluation import guard_evaluation
from ..ladder import LADDER
from ..mistakes.check_arguments import require_trainer
from ..precision_guard import PrecisionGuard
from ..switch_precision import engine_of, precision_of, refuse_engine, remember_models, switch_precision
from .evaluated_first import prepare_for_training
from .one_norm import OneNorm
from .trainer_callback import PrecisionCallback, complete_checkpoint, load_scaler
from .trainer_window import TrainerWindow
from .training_record import StepDown, TrainingRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ATTRIBUTE = "_safe_dtype_attached"


def attach(trainer: T, policy: Policy | str | None = None, *, max_memory: Mapping[Any, Any] | None = None) -> T:
    """Have a `transformers.Trainer` lose no step where its precision fails.

        trainer = safe_dtype.attach(Trainer(model=model, args=TrainingArguments("out", bf16=True), train_dataset=data))
        trainer.train()

    Before each step of the optimizer the loss and the gradients are looked at, on all ranks together. Where they are not
    finite, or forward or backward raised for want of a kernel, the step is not applied: its batches run again, with the
    same random numbers, in the next precision: bfloat16, then float16 with a `GradScaler`, then float32. A batch that
    overflows in float16 runs again with a smaller loss scale, where a scaler alone would drop it; where products of single
    layers overflow with every scale, with those scaled on their own.

    Works with every subclass of Trainer: its own `training_step` and `compute_loss` are called as they are. Rows of losses
    in the log get `precision`, `fallbacks` and `nonfinite_steps`; checkpoints get a `safe_dtype.json`, and a run that is
    resumed from one goes on in its precision.

    Args:
        trainer: The Trainer, at any time before `train()`. A second call changes nothing.
        policy: `ladder` names the precisions to go on in. In strict mode none is changed: a step that is not finite ends
            the run before it is applied.
        max_memory: Bytes that this process may hold, by device, as accelerate takes them. Where a step in float32 does not fit
            into that, or into what is free, a step down checkpoints activations, or runs micro-batches in parts.

    Returns:
        `trainer` itself.

    Raises:
        TypeError: If `trainer` is something else.
        PolicyError: If `policy` is a text that cannot be read, or asks for int8 or int4.
        ValueError: If `max_memory` is no table of sizes.
        NeedsRestart: If the precision is built into an engine, as in DeepSpeed and FSDP1. `train()` raises `TrainingError`
            for the model that it cannot guard: one with trained parameters in 16 bit, or in `nn.DataParallel`.
    """
    require_trainer(trainer)
    policy = Policy.of(policy) or Policy()
    if policy.codes:
        raise PolicyError(
            str(policy),
            f"{policy.codes} rounds weights as they are loaded, and a Trainer has its model already",
            example=str(replace(policy, int8=False, int4=False)),
        )
    if not is_attached(trainer):
        _Attached(trainer, policy, max_memory=max_memory)
    return trainer


def attach_where_possible(trainer: Any, policy: Policy, tell: Callable[[str], None]) -> None:
    """Do what `attach` does for a program that has not asked for it: what cannot be guarded trains as it is, and logs why.

    Args:
        trainer: Not attached yet, or nothing is done.
        policy: Of the program.
        tell: Called with the precisions that it trains in, for a person to read, where its first run begins guarded.
    """
    if is_attached(trainer):
        return
    try:
        _Attached(trainer, policy, tell=tell)
    except TrainingError as exc:
        _say_unguarded(trainer, exc)


def is_attached(trainer: Any) -> bool:
    """Whether `attach` was called on it."""
    return _ATTRIBUTE in vars(trainer)


class _Attached:
    """One Trainer, and what wraps its methods."""

    def __init__(
        self,
        trainer: Any,
        policy: Policy,
        *,
        tell: Callable[[str], None] | None = None,
        max_memory: Mapping[Any, Any] | None = None,
    ) -> None:
        self._max_memory = limits_of(max_memory)
        engine = engine_of(trainer.accelerator)
        if engine is not None:
            refuse_engine(engine)
        self._trainer, self._policy, self._tell = trainer, policy, tell
        self._is_told = False
        self._guard: PrecisionGuard | None = None
        self._noted = 0  # of the guard's events
        first = self._begin_precision()
        if first == FLOAT16 and trainer.accelerator.device.type == "cpu" and is_first_rank():
            logger.warning(
                "fp16=True was asked for on a CPU: training in float16, with a GradScaler. Many CPUs have no products of "
                "float16, and a step then takes many times float32's. Next: bf16=True, or neither for float32; "
                "`safe-dtype doctor` measures what this CPU has"
            )
        self._name = trainer.accelerator.mixed_precision  # of the precision of this Trainer, as accelerate calls it
        self._is_running = False
        self._record = TrainingRecord(first, first)
        self._window = TrainerWindow(trainer, trainer.training_step, self._note)
        untouched = set(vars(trainer))
        for name, wrapper in (
            ("training_step", self._training_step),
            ("_load_scaler", functools.partial(self._load_scaler, trainer._load_scaler)),
            ("_save_checkpoint", functools.partial(self._save, trainer._save_checkpoint)),
            ("_hp_search_setup", functools.partial(self._begin_trial, trainer._hp_search_setup)),
            ("_inner_training_loop", functools.partial(self._run, trainer._inner_training_loop)),
        ):
            setattr(trainer, name, _like(getattr(trainer, name), wrapper))
        if tell is None:  # `attach` was called
            guard_evaluation(trainer, policy)  # in a patched program every evaluation is guarded
        # First, so that what reports to others reads the rows with what was added to them.
        self._callback = PrecisionCallback(self.record, self._begin)
        trainer.callback_handler.callbacks.insert(0, self._callback)
        vars(trainer)[_ATTRIBUTE] = self
        if not hasattr(trainer, "__deepcopy__"):
            vars(trainer)["__deepcopy__"] = self._copy
        self._ours = set(vars(trainer)) - untouched

    @property
    def ladder(self) -> str:
        """The precisions of this run, as a person reads them."""
        dtypes = self._ladder(self._record.began_in)
        names = [f"{dtype} with a GradScaler" if dtype == FLOAT16 else str(dtype) for dtype in dtypes]
        return ", then ".join(names)

    def record(self) -> TrainingRecord:
        """Return what has happened so far."""
        accelerator = self._trainer.accelerator
        if not self._is_running:
            return self._record
        scaler = accelerator.scaler
        state = scaler.state_dict() if scaler is not None and scaler.is_enabled() else None
        guard = self._guard
        return replace(
            self._record, precision=precision_of(accelerator), scaler=state,
            rescaled=guard.rescaled if guard is not None else (),
            own_autocasts_off=guard is not None and guard.autocasts.are_off,
        )  # fmt: skip

    def _copy(self, memo: dict[int, Any]) -> Any:
        """Return a copy of the Trainer that is attached itself: functions that refer to the first one are not copied."""
        trainer, callbacks = self._trainer, self._trainer.callback_handler.callbacks
        place = callbacks.index(self._callback) if self._callback in callbacks else None
        if place is not None:
            callbacks.pop(place)
        try:
            kind: Any = type(trainer)
            other = memo[id(trainer)] = kind.__new__(kind)
            rest = {name: value for name, value in vars(trainer).items() if name not in self._ours}
            vars(other).update(copy.deepcopy(rest, memo))
        finally:
            if place is not None:
                callbacks.insert(place, self._callback)
        attached = _Attached(other, self._policy, tell=self._tell, max_memory=self._max_memory)
        attached._record, attached._name = self._record, self._name
        return other

    def _run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Train in the precision that this Trainer has come to: other Trainers of the process have their own."""
        state = self._trainer.accelerator.state  # of all Accelerators
        prepare_for_training(self._trainer)
        others, state._mixed_precision = state._mixed_precision, self._name
        self._is_running = True
        try:
            return original(*args, **kwargs)
        finally:
            self._window.close()  # an interruption may have left a part of one
            self._record = self.record()
            self._name, self._is_running = state._mixed_precision, False
            state._mixed_precision = others

    def _training_step(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._window(*args, **kwargs)
        except NoDtypeLeft as exc:
            if self._policy.mode != "strict":
                raise
            names = [dtype.name for dtype in LADDER]
            below = tuple(names[names.index(exc.dtype) + 1 :])
            switch = "train in one of these, or without 'strict', which tries them in turn"
            raise StrictModeError(
                exc.dtype,
                f"{exc.failure} at optimizer step {exc.optimizer_step}",
                below,
                next_step=switch if below else exc.next_step,
                are_untried=bool(below),
            ) from exc.__cause__

    def _begin_precision(self) -> Dtype:
        """Return the dtype that this Accelerator trains in, which is float16 where that was asked for on a CPU."""
        accelerator = self._trainer.accelerator
        if accelerator.mixed_precision == "fp16" and not accelerator.native_amp:
            switch_precision(accelerator, FLOAT16)
        return precision_of(accelerator)

    def _ladder(self, first: Dtype) -> tuple[Dtype, ...]:
        if self._policy.mode == "strict":
            return (first,)
        below = LADDER[LADDER.index(first) + 1 :]
        return (first, *(dtype for dtype in below if not self._policy.ladder or dtype in self._policy.ladder))

    def _begin(self) -> None:
        try:
            self._guard = self._new_guard()
        except TrainingError as exc:
            if self._tell is None:
                raise
            _say_unguarded(self._trainer, exc)
            self._guard = None
        self._window.guard = self._guard
        if self._guard is not None and self._tell is not None and not self._is_told:
            self._is_told = True
            self._tell(self.ladder)

    def _new_guard(self) -> PrecisionGuard:
        trainer, accelerator = self._trainer, self._trainer.accelerator
        remember_models(accelerator, [trainer.model_wrapped])
        first = self._begin_precision()
        if not accelerator._models:
            raise NotSwitchableError(
                f"{type(trainer.model_wrapped).__name__} was not prepared by accelerate",
                "start one process a device, with torchrun",
            )
        guard = PrecisionGuard(
            accelerator, trainer.model_wrapped, ladder=self._ladder(first), max_memory=self._max_memory,
            rescales=self._policy.mode != "strict",
        )  # fmt: skip
        if first == FLOAT16:
            guard.rescale(self._record.rescaled)
        guard.windows_done, self._noted = trainer.state.global_step, 0
        guard.pardons_losses = self._record.pardons_losses
        guard.autocasts.are_kept, guard.autocasts.are_off = (
            self._policy.mode == "strict",
            self._record.own_autocasts_off,
        )
        self._window.norm = OneNorm(accelerator)
        # What goes on in float32, where it had come to, is made to fit; an order is left as it is.
        goes_on = guard.dtype == FLOAT32 and self._record.step_downs
        self._window.look = guard.memory.fit if goes_on else None
        return guard

    def _begin_trial(self, original: Callable[..., Any], trial: Any) -> None:
        """Have each trial of a search begin in the precision that was asked for: its Accelerator is made anew."""
        if trial is not None:
            switch_precision(self._trainer.accelerator, self._record.began_in)
            self._record = TrainingRecord(self._record.began_in, self._record.began_in)
        original(trial)
        if trial is not None:
            self._name = self._trainer.accelerator.mixed_precision

    def _note(self) -> None:
        """Take note of a window that was run again."""
        record, step = self._record, self._trainer.state.global_step
        events = self._guard.events[self._noted :] if self._guard is not None else []
        self._noted += len(events)
        downs = [
            StepDown(step, e.before.name, e.after.name, e.message) for e in events if e.after not in (None, e.before)
        ]
        nonfinite = any(event.kind is FailureKind.NONFINITE for event in events)
        self._record = replace(
            record,
            step_downs=(*record.step_downs, *downs),
            nonfinite_steps=record.nonfinite_steps + nonfinite,
            pardons_losses=self._guard is not None and self._guard.pardons_losses,
        )

    def _save(self, original: Callable[..., Any], model: Any, trial: Any = None, *args: Any) -> Any:
        returned = original(model, trial, *args)
        complete_checkpoint(self._trainer, trial, self.record())
        return returned

    def _load_scaler(self, original: Callable[..., Any], checkpoint: str | None) -> None:
        """Go on in the precision that the run was in as the checkpoint was written, and with its loss scale."""
        record = None if checkpoint is None else TrainingRecord.read(Path(checkpoint))
        if record is not None:
            self._record = replace(record, began_in=self._record.began_in)
            if record.precision in self._ladder(precision_of(self._trainer.accelerator))[1:]:
                remember_models(self._trainer.accelerator, [self._trainer.model_wrapped])
                switch_precision(self._trainer.accelerator, record.precision)
                logger.info("%s goes on in %s, as before", checkpoint, record.precision)
        load_scaler(self._trainer, checkpoint, record, original)


def _say_unguarded(trainer: Any, error: TrainingError) -> None:
    if is_first_rank():
        logger.warning("%s trains unguarded: %s", type(trainer).__name__, error)


def _like(method: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    """Return `wrapper` as a function with the name, text and signature of `method`."""

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(*args, **kwargs)

    return wrapped
