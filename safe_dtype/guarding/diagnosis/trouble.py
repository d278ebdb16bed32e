"""A call of a guarded model that went wrong, and what came of it. Nouns only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ...models.casting import is_finite
from ..blame import runs_modules
from ..compute_dtype import as_planned
from ..failure import Failure
from ..output_checks import Peaks
from ..state import CALL, Guard, here
from ..step_snapshot import STATE_LISTS, StepSnapshot
from .module_call import FinishedCall
from .pristine import as_it_is


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a guarded model that failed, with the state before it."""

    guard: Guard
    module: nn.Module
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    snapshot: StepSnapshot
    entry: str = CALL  # or the name of the method that was called

    @property
    def arguments(self) -> list[Any]:
        """All arguments."""
        return [*self.args, *self.kwargs.values()]

    @property
    def tensors(self) -> list[Any]:
        """Those that a step only reads: it may write into the states in caches, and into lists of states."""
        return _tensors_of([*self.args, *(value for name, value in self.kwargs.items() if name not in STATE_LISTS)])

    @property
    def caches(self) -> list[Cache]:
        """The caches among the arguments."""
        return [value for value in self.arguments if isinstance(value, Cache)]

    def reads_poison(self) -> bool:
        """Whether the caller gave numbers that are not finite, as far as it has not written over them.

        In a generation the caller has given what that was asked with: all else is of the model's own making.
        """
        if id(self.guard) in here.nets:
            return not is_finite(_tensors_of(here.asked[here.nets.index(id(self.guard))]))
        return not is_finite(self.tensors) and not self.snapshot.has_written_inputs()

    def run(self) -> Any:
        """Call with every module's hooks, which a compiled form leaves out."""
        called = self.module if self.entry == CALL else getattr(self.module, self.entry)
        return as_planned(self.guard, called, self.args, self.kwargs)(*self.args, **self.kwargs)

    def runs_modules(self, error: Exception | None) -> bool:
        """Whether it runs any module: of methods other than forward nobody knows before. `error` is how it has failed."""
        if self.entry in (CALL, "forward") or self.guard.model() is None or not self.snapshot.roll_back():
            return True
        with as_it_is(error):
            return runs_modules(self.module, self.run)


def _tensors_of(values: list[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, (torch.Tensor, ModelOutput, tuple, list, dict))]


@dataclass(frozen=True, slots=True)
class Trouble:
    """How a call went wrong: by an exception, or by its numbers."""

    failure: Failure | None  # None: its text tells nothing
    error: Exception | None = None
    block: nn.Module | None = None  # whose values are pinned to the end of float16
    calls: Sequence[FinishedCall] = ()  # of modules that are known to make NaN of their own


@dataclass(frozen=True, slots=True)
class Unjudged:
    """The numbers of a call that went through, which nobody has looked at yet."""

    is_spoiled: torch.Tensor  # a bool without dimensions, on the device
    peaks: Peaks  # of the blocks that are watched
    calls: Sequence[FinishedCall]  # as in `Trouble`


class StepResult(Enum):
    """What came of looking at a step that went wrong."""

    CURED = "the model has changed, and the state is that before the step"
    LET_BE = "no matter of dtypes, and nothing was touched"
    ROLLED_BACK = "no matter of dtypes, and the state is that before the step"
    OWN = "float32 has given the same, and the model is what it was before"
    PASSED = "it came out right the second time, with nothing changed"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What came of a step that went wrong, with its output where it passed the second time."""

    result: StepResult
    output: Any = None
