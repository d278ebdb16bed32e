"""While armed, an operation that fails for its dtype gives NaN instead, so that this rank keeps its collectives in step.

Peers cannot be told in the middle of a step that this rank has failed: they wait in the next collective. So the rank
goes on with NaN in the place of numbers, meets them in every collective that is left, and tells afterwards, in the vote.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.utils._python_dispatch import TorchDispatchMode

from ..guarding.classify import classify, links_of
from ..guarding.failure import Failure
from ..numerics import uncompiled
from .poisoned_values import CannotPoison, poisoned_values

ARMED_STEPS = 3  # after a start, a change of dtype, or new shapes; from then on the kernels that run are known to

# Collectives, and what prepares their buffers: a peer waits for the very numbers of this rank. Never swallowed.
_COLLECTIVES = frozenset({
    "c10d", "c10d_functional", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "fsdp", "symm_mem",
})  # fmt: skip
_OF_BACKWARD = "_engine_run_backward"  # torch.autograd.graph: modules above it only called backward
_MOST_KEPT = 8  # operations that are remembered: after the first one they fail one after the other


@dataclass(frozen=True, slots=True)
class PoisonedOp:
    """An operation that failed, and gave NaN."""

    op: str  # "aten.mm.default"
    failure: Failure
    module: ref[nn.Module] | None = None  # the innermost one that was running; in backward there is none


class ArmedPoison(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which operations that fail for their dtype, in forward or backward, give NaN of the shape due.

    What fails for another reason raises as ever: memory, communication, shapes, the caller's own errors. So does what
    NaN cannot stand for (`CannotPoison`), and what is no operation of torch: a kernel that Python calls by itself.
    Of an operation on a DTensor the local ones are watched, and its collectives left alone.

    While the mode is on, each operation costs some microseconds, and what is compiled runs eagerly, operation by operation.

    Attributes:
        poisoned: The first operations that failed, in their order. Empty: this rank has not failed.
        error: What the first one raised, without its traceback, which would keep the activations of the step.
        refusal: Why the latest failure was raised after all; empty where none was.
        is_off: Whether everything raises as ever from now on.
    """

    supports_higher_order_operators = True  # they run as ever: flex attention in a model must

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.poisoned: tuple[PoisonedOp, ...] = ()
        self.error: Exception | None = None
        self.refusal = ""
        self.is_off = False
        self._stances: list[AbstractContextManager[Any]] = []

    def __enter__(self) -> Any:
        """Arm."""
        # A compiled function that meets a mode is marked, and never runs compiled again. Where this stance is, it is not.
        stance = uncompiled()
        stance.__enter__()
        self._stances.append(stance)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exc: Any) -> None:
        """Disarm."""
        try:
            super().__exit__(*exc)  # type: ignore[no-untyped-call]
        finally:
            self._stances.pop().__exit__(*exc)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        if any(hasattr(kind, "_local_tensor") for kind in types):
            return NotImplemented  # a DTensor first: it calls this mode again, with local tensors and with collectives
        if func.namespace in _COLLECTIVES:
            return self.run_collective(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except Exception as exc:
            if self.is_off:
                raise
            failure = classify(exc)
            is_fake = detect_fake_mode([*args, *kwargs.values()]) is not None  # only shapes are being found out
            if failure is None or failure.sticky or is_fake:  # on a device that is lost every operation fails
                raise
            try:
                values = poisoned_values(func, args, kwargs)
            except CannotPoison as reason:
                self.refusal = f"{func} failed, and {reason}"
                raise exc from exc.__cause__
            self._remember(func, failure, exc)
            return values

    def run_collective(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a collective: what it raises is raised."""
        return func(*args, **kwargs)

    def _remember(self, func: Any, failure: Failure, error: Exception) -> None:
        if len(self.poisoned) < _MOST_KEPT:
            self.poisoned += (PoisonedOp(str(func), failure, _running_module()),)
        if self.error is None:
            for link in links_of(error):
                link.__traceback__ = None
            self.error = error


def _running_module() -> ref[nn.Module] | None:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != _OF_BACKWARD:
        running = frame.f_locals.get("self")
        if isinstance(running, nn.Module):
            return ref(running)
        frame = frame.f_back
    return None


class Arming:
    """Says at which steps to arm: the first ones after a start, a change of dtype, and new shapes."""

    def __init__(self, steps: int = ARMED_STEPS) -> None:
        self._steps = steps
        self._left = steps
        self._shapes: set[Any] = set()

    def begin_anew(self) -> None:
        """Note that other kernels will run from now on."""
        self._left = self._steps

    def sees(self, shapes: Any) -> None:
        """Note the shapes of a step: those that were not there before are a new start."""
        if shapes not in self._shapes:
            self._shapes.add(shapes)
            self._left = self._steps

    @property
    def is_due(self) -> bool:
        """Whether the step that begins is to be armed."""
        return self._left > 0

    def step_done(self) -> None:
        """Count a step that all ranks have brought to its end."""
        self._left = max(0, self._left - 1)
