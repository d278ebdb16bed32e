"""The way back from a change of a model, kept while it may still be needed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..processes.handler_exceptions import is_of_a_signal

logger = logging.getLogger(__name__)

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_MOST_INTERRUPTS = 16  # after which a step that is interrupted is not begun once more
_FEW = 1 / 8  # of a tensor's numbers: up to so many are kept one by one


class UndoLog:
    """Steps that take changes back, the latest first.

    Each is noted before its change, and may run without it, and once more where it was interrupted.
    """

    def __init__(self, *, forgets: bool = False) -> None:
        self.forgets = forgets
        self._steps: list[tuple[Callable[[], None], torch.device | None]] = []

    @classmethod
    def forgetful(cls) -> UndoLog:
        """Return one that keeps nothing: for changes that nobody takes back."""
        return cls(forgets=True)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Callable[[], None], device: torch.device | None = None) -> None:
        """Note how the change that follows is taken back, and the device that this asks for something."""
        if not self.forgets:
            self._steps.append((step, device))

    def undo(self, since: int = 0, *, is_device_lost: bool = False) -> None:
        """Take back everything that was noted after the first `since` steps. A step that fails is logged.

        Where a device is lost, what lies on accelerators stays as it is.

        Whatever comes from outside meanwhile (Ctrl-C, what a handler of a signal raises) is raised when all is done.
        """
        from_outside: list[BaseException] = []
        while len(self._steps) > since:
            step, device = self._steps[-1]
            try:
                if not (is_device_lost and device is not None and device.type != "cpu"):
                    step()
            except BaseException as exc:
                if isinstance(exc, Exception) and not is_of_a_signal(exc):
                    logger.exception("A change of the model could not be taken back")
                else:
                    from_outside.append(exc)
                    if len(from_outside) <= _MOST_INTERRUPTS:
                        continue  # the step has not come to its end
            self._steps.pop()
        if from_outside:
            raise from_outside[0]


def keeps_all(old: torch.dtype, new: torch.dtype) -> bool:
    """Whether a cast rounds so many numbers of a tensor that the way back keeps the tensor whole: in main memory."""
    return torch.finfo(new).eps > torch.finfo(old).eps


def way_back(old: torch.Tensor, new: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes `old`, bit for bit, of `new` or of `old` itself, where that lies.

    Holds as little of `old` as that needs, and nothing on an accelerator.
    """
    dtype = old.dtype
    if old.is_meta or type(old) is not torch.Tensor or type(new) is not torch.Tensor:
        return lambda tensor: tensor.to(dtype)
    if new.shape != old.shape or dtype not in _BITS:
        return _kept(old)
    bits = _BITS[dtype]
    # A cast to float32 keeps all but some NaNs, and to count what differs takes four times as long. On an accelerator, where
    # `equal` wants memory of its own, both are quick.
    if old.device.type == "cpu" and torch.equal(new.to(dtype).view(bits), old.view(bits)):
        return lambda tensor: tensor.to(dtype)
    differs = (new.to(dtype).view(bits) != old.view(bits)).flatten()
    count = int(differs.sum())
    if count == 0:
        return lambda tensor: tensor.to(dtype)
    if count > old.numel() * _FEW:
        return _kept(old)
    places = differs.nonzero().flatten()
    numbers, indices, shape = old.flatten()[places].cpu(), places.cpu(), old.shape

    def exactly(tensor: torch.Tensor) -> torch.Tensor:
        back = tensor.to(dtype).flatten().index_copy(0, indices.to(tensor.device), numbers.to(tensor.device))
        return back.view(shape)

    return exactly


def _kept(old: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    whole = old.cpu()
    return lambda tensor: whole.to(tensor.device)
