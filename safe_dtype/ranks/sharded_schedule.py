"""A rank that failed under FSDP2 (`fully_shard`) goes on with NaN through the collectives that are left in the window."""

from __future__ import annotations

from torch import nn

from .armed_poison import ArmedPoison, Arming
from .fsdp2 import forget_step
from .schedule import OutOfStepError


class ShardedSchedule:
    """The collectives of one model under FSDP2, which are in the middle of forward and backward.

    In the first windows after a start and after a change of dtype, an operation that fails for its dtype gives NaN in the
    place of raising; later ones are not watched, for which an operation costs nothing. What raises all the same leaves the
    others waiting until the process ends.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._arming = Arming()
        self._poison: ArmedPoison | None = None
        self._error: Exception | None = None

    def begin(self) -> None:
        """Arm, where kernels run that have not been seen to run."""
        self._error = None
        if self._arming.is_due:
            self._poison = ArmedPoison()
            self._poison.__enter__()

    def end(self, *, is_whole: bool) -> None:
        """Disarm."""
        if self._poison is not None:
            self._error = self._poison.error
            self._poison.__exit__(None, None, None)
            self._poison = None
        if is_whole:
            self._arming.step_done()

    def hidden_error(self) -> Exception | None:
        """Return what an operation would have raised."""
        return self._poison.error if self._poison is not None else self._error

    def keep(self, error: BaseException) -> None:
        """Say that the collectives which are left cannot be run without the model."""
        refusal = self._poison.refusal if self._poison is not None else ""
        raise OutOfStepError(refusal or f"{type(error).__name__} came out between two collectives of FSDP2")

    def reset(self) -> None:
        """Bring FSDP2 to where a step begins, and arm again."""
        forget_step(self._model)
        self._arming.begin_anew()
