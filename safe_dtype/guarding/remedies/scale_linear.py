"""Scale linear layers by what goes into them, where their products leave float16's range and no rescaling reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.casting import cast, is_finite
from ...models.offloaded import is_offloaded
from ...models.recast import main_dtype
from ...models.scaled_linear import can_be_scaled, scale_by_input, scale_no_more
from ...numerics import uncompiled
from ..diagnosis.module_call import CannotRepeatError, ModuleCall
from ..diagnosis.weights_in import NoRoomError, weights_in
from ..failure import FailureKind
from ..incident import Incident
from ..step_snapshot import undone

# Of the results, RMS: sums of numbers that float16 rounds by 2 ** -11 differ by less.
_MOST_DIFFERENCE = 2.0**-8


@dataclass(frozen=True)
class ScaleLinear:
    """Scale linear layers by what goes into them: `wide` ones hand on float32, which the `narrow` ones take."""

    wide: tuple[nn.Module, ...]
    narrow: tuple[nn.Module, ...]
    changes_dtype = False

    def __str__(self) -> str:
        layers = len(self.wide) + len(self.narrow)
        return f"{layers} linear layer{'s' * (layers != 1)} scaled by what goes in"

    def apply(self, incident: Incident) -> int:
        """Have the layers scale their inputs. That it is finite and right was tried when it was proposed."""
        incident.log.add(self._take_back)
        self._scale()
        return 0

    def undo(self, incident: Incident) -> None:  # noqa: ARG002
        """Have them compute as before."""
        self._take_back()

    def is_right(self, call: ModuleCall) -> bool:
        """Whether `call` then gives what it gives in float32, in the dtype that it gives now. Nothing stays changed."""
        try:
            with undone(call.module), torch.no_grad(), uncompiled():
                args, kwargs = call.inputs(
                    lambda tensor: cast(tensor.detach().clone(), {torch.float16}, torch.float32)
                )
                with weights_in(call.module, {torch.float16}, torch.float32):
                    truth = _result(call.run(*args, **kwargs))
                args, kwargs = call.inputs(lambda tensor: tensor.detach().clone())
                self._scale()
                try:
                    output = _result(call.run(*args, **kwargs))
                finally:
                    self._take_back()
        except (CannotRepeatError, NoRoomError, RuntimeError, TypeError, ValueError):
            return False
        return truth is not None and output is not None and output.dtype == torch.float16 and _is_near(truth, output)

    def _scale(self) -> None:
        for layers, returns_float32 in ((self.wide, True), (self.narrow, False)):
            for layer in layers:
                scale_by_input(layer, returns_float32=returns_float32)

    def _take_back(self) -> None:
        for layer in (*self.wide, *self.narrow):
            scale_no_more(layer)


def propose(incident: Incident) -> Iterator[ScaleLinear]:
    """Yield what a trial on the very inputs of the failed module showed to be finite and right, if anything."""
    if incident.failure.kind is not FailureKind.NONFINITE or main_dtype(incident.model) != torch.float16:
        return
    if not is_offloaded(incident.model):
        yield from (remedy for call, remedy in _candidates(incident.calls) if remedy.is_right(call))


def _candidates(calls: tuple[ModuleCall, ...]) -> Iterator[tuple[ModuleCall, ScaleLinear]]:
    """Yield what to try, each with the call to try it on; `calls` are those that were running, innermost first."""
    for call in calls[:1]:
        if can_be_scaled(call.module):
            yield call, ScaleLinear((), (call.module,))  # sums inside the product
    for call in calls[:2]:
        layers = [layer for layer in call.module.children() if can_be_scaled(layer)]
        first = [layer for layer in layers if layer is calls[0].module]
        if first:  # its output itself; those beside it take that, after what is between them
            yield call, ScaleLinear(tuple(first), tuple(layer for layer in layers if layer not in first))
        elif len(layers) > 1:  # what is made of outputs: of all but the last
            yield call, ScaleLinear(tuple(layers[:-1]), tuple(layers[-1:]))


def _result(returned: Any) -> Tensor | None:
    first = returned[0] if isinstance(returned, (tuple, list)) and returned else returned
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def _is_near(truth: Tensor, output: Tensor) -> bool:
    if not is_finite([output]) or truth.shape != output.shape:
        return False
    difference = torch.linalg.vector_norm(output.double() - truth.double())
    return bool(difference <= _MOST_DIFFERENCE * torch.linalg.vector_norm(truth.double()))
