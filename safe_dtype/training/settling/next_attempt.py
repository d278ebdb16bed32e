"""What a window that has failed runs again in: a smaller loss scale, scaled products, the next dtype, or the one before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...errors import NoDtypeLeft, TrainingLoopError
from ...facts import FLOAT32, Dtype
from ...guarding import Attempt, FailureKind
from ...ranks import Vote, VoteTally
from ..half_products.rescale_rung import RescaleRung
from ..judge_numbers import Judgement
from ..ladder import rungs
from ..loop import Loop
from .own_autocasts import WITHOUT_OWN, OwnAutocasts
from .window_vote import LOSS_ALONE

_MOST_NAMES = 4  # of layers, in one line
_SEE_CAUSE = "see the cause above. The step was not applied"
_NO_FLOAT32 = "the step was not applied. Let the ladder end with float32"
_OF_NUMBERS = (  # after float32: precision is not to blame
    "the step was not applied. Look whether the weights are finite and the batch too, its labels among it; else begin "
    "again from an earlier checkpoint with a lower learning rate, a warmup, or clipped gradients (max_grad_norm)"
)


class NextAttempt:
    """Changes the loop for the next attempt at a window, by what the ranks have come to: the same on all of them.

    Args:
        loop: What is changed.
        ladder: The dtypes to train in.
        rung: float16 with scaled products, between a smaller loss scale and the next dtype.
        has_room: Whether float32 fits here, than which scaled products take no more; None: they are not tried.
        autocasts: Of the models themselves, turned off where float32 fails as well.

    Attributes:
        pardons_losses: Whether losses that are not finite are left alone where all gradients are finite.
        has_other_products: Whether attempts at this window in the dtype of now scale products, as none did before it.
    """

    def __init__(
        self,
        loop: Loop,
        ladder: Sequence[Dtype],
        rung: RescaleRung,
        has_room: Callable[[], bool] | None,
        autocasts: OwnAutocasts,
    ) -> None:
        self._loop, self._ladder, self._rung, self._has_room = loop, tuple(ladder), rung, has_room
        self._autocasts = autocasts
        self._tried: list[Attempt] = []
        # Where the loss was not finite first: the dtype, its scaler's state, and its scaled products.
        self._left: tuple[Dtype, Any, tuple[str, ...]] | None = None
        self._first_scale: float | None = None  # of the loss in this window and dtype, where it was halved since
        self._reason = ""  # for which products are looked at
        self.pardons_losses = self.has_other_products = False

    def begin(self) -> None:
        """Begin a window."""
        self._tried, self._left, self._first_scale, self.has_other_products = [], None, None, False
        self._rung.products.watch_no_more()
        self._autocasts.begin()

    def judged(self, judgement: Judgement) -> Judgement:
        """Return the vote on the numbers of an attempt."""
        if judgement.is_loss_alone:
            judgement = self._pardoned(judgement)
        return self._rung.judged(judgement, self._reason) if self._rung.products.is_watching else judgement

    def _pardoned(self, judgement: Judgement) -> Judgement:
        """Return the vote on a loss that is not finite while all gradients are: a batch without any label, say.

        Where the last dtype says so too, it is the batch, and plain training survives that. The window is then made in the
        dtype in which it began, and such losses are left alone from there on.
        """
        if self.pardons_losses:
            return Judgement(Vote.OK)
        if rungs(self._loop.dtype, self._ladder)[1:]:
            return judgement
        if self._left is None:  # on all ranks alike
            return Judgement(Vote.OK)
        reason = f"{judgement.reason} in {self._loop.dtype} either, and all gradients are finite"
        return Judgement(Vote.RETRY, reason, is_loss_alone=True)

    def after(
        self, tally: VoteTally, kind: FailureKind, reason: str, error: Exception | None, *, step: int
    ) -> str | None:
        """Change the loop, and return the remedy, in words; None where the next attempt only looks for one.

        `step` is that of the optimizer, which an error names.

        Raises:
            NoDtypeLeft: If this was the last dtype.
        """
        is_loss_alone, is_watched = tally.payload == LOSS_ALONE, self._rung.products.is_watching
        if tally.vote is Vote.RETRY and is_loss_alone:
            return self._return()
        if tally.vote is Vote.RETRY:
            return self._after_watch(error, step) if is_watched else self._halve()
        if kind is FailureKind.NONFINITE and not is_loss_alone and not is_watched and self._shows_products():
            self._reason = reason
            return None
        return self._step_down(kind, self._reason if is_watched else reason, error, step)

    def _shows_products(self) -> bool:
        """Whether the next attempt shows which products overflow."""
        if self._has_room is None:
            return False
        self.has_other_products = self._rung.is_taken(self._loop.scaler, self._has_room)
        return self.has_other_products

    def _after_watch(self, error: Exception | None, step: int) -> str:
        names = self._rung.settle(self._loop.scaler, self._first_scale)
        if names is None:
            return self._halve()
        if not names:
            return self._step_down(FailureKind.NONFINITE, self._reason, error, step)
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        return f"in {self._loop.dtype} with scaled products of {', '.join(names[:_MOST_NAMES])}{more}"

    def _halve(self) -> str:
        scaler = self._loop.scaler
        scale = scaler.get_scale()
        if self._first_scale is None:
            self._first_scale = scale
        scaler.update(scale * scaler.get_backoff_factor())
        scaler._growth_tracker.fill_(0)
        return f"loss scale {scaler.get_scale():g}"

    def _step_down(self, kind: FailureKind, reason: str, error: Exception | None, step: int) -> str:
        before, products = self._loop.dtype, self._rung.products
        products.watch_no_more()
        self._tried.append(Attempt(self._now(), reason))
        below = rungs(before, self._ladder)[1:]
        if not below and before == FLOAT32 and self._autocasts.turn_off():
            return self._now()
        if not below:
            self._autocasts.failed()
            of_numbers = _OF_NUMBERS if before == FLOAT32 else _NO_FLOAT32
            advice = of_numbers if kind is FailureKind.NONFINITE else _SEE_CAUSE
            attempts = tuple(self._tried)
            raise NoDtypeLeft(reason, before.name, attempts, optimizer_step=step, next_step=advice) from error
        if kind is not FailureKind.NONFINITE:
            self._left = None
        elif self._left is None:
            scaler = self._loop.scaler
            self._left = before, scaler.state_dict() if scaler is not None else None, products.names
        self._loop.switch(below[0])
        products.scale(())
        self._first_scale, self.has_other_products = None, False
        return self._now()

    def _now(self) -> str:
        is_without = self._loop.dtype == FLOAT32 and self._autocasts.are_off
        return f"in {self._loop.dtype}{WITHOUT_OWN if is_without else ''}"

    def _return(self) -> str:
        """Go back to the dtype that a loss was blamed on for nothing."""
        if self._left is None:  # RETRY with a pardon is only voted where it was left
            raise TrainingLoopError("ranks are not in the same window")
        dtype, scaler, names = self._left
        self._loop.switch(dtype)
        if scaler is not None:
            self._loop.scaler.load_state_dict(scaler)
        self._rung.products.scale(names)
        self._left, self.pardons_losses = None, True
        return f"in {dtype}"
