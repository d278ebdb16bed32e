"""Whether it shows in a model's results that some of its operations leave float16's range: before a soft cap it does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .peaks import Peak, Peaks, names_known


def without_room(
    model: nn.Module, batches: Sequence[Mapping[str, Any]], dtype: torch.dtype, peaks: Peaks, limit: float
) -> Peak | None:
    """Return the largest of `peaks` where it exceeds `limit` and results show that such a one does; None: there is room.

    Arguments: as those of `shows`, which runs the model where any exceeds it.
    """
    over = peaks.beyond(limit)
    return over[0] if over and shows(model, batches, dtype, over, limit) else None


def shows(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], dtype: torch.dtype, peaks: Iterable[Peak], limit: float
) -> bool:
    """Whether results change by a bit, or are not finite, where `peaks` are infinite as soon as they exceed `limit`.

    Args:
        model: In `dtype`; it runs twice on every batch.
        batches: Inputs.
        dtype: What is looked at.
        peaks: The operations that may overflow. Others stay what they are.
        limit: The end of the range.
    """
    places = frozenset((peak.module, peak.op) for peak in peaks)
    overflowing = _Overflowing(dtype, places, limit)
    with names_known(model, overflowing), torch.inference_mode():
        for batch in batches:
            expected = _results(model(**batch))
            with overflowing:
                results = _results(model(**batch))
            if not all(torch.equal(one, other) for one, other in zip(results, expected, strict=True)):
                return True
            if not all(bool(one.isfinite().all()) for one in results):
                return True
    return False


class _Overflowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes infinite what is beyond a limit."""

    def __init__(self, dtype: torch.dtype, places: frozenset[tuple[str, str]], limit: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = [""]
        self._dtype, self._places, self._limit = dtype, places, limit

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        here = (self.path[-1], str(func)) in self._places
        if not here or not isinstance(result, Tensor) or result.dtype != self._dtype:
            return result
        return torch.where(result.abs() > self._limit, result.sign() * torch.inf, result)

    def left(self, _output: Any) -> None:
        """Note that the innermost module has returned."""
        self.path.pop()


def _results(returned: Mapping[str, Any]) -> list[Tensor]:
    return [value for value in returned.values() if isinstance(value, Tensor) and value.is_floating_point()]
