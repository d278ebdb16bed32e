"""The largest numbers that a model computes in its 16-bit dtype, operation by operation, and which module does so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...facts import FLOAT16
from ...models.shift_hooks import shifted_modules
from .known_bounds import KnownBounds

# Masks are filled with the end of the range, whatever the dtype: no activation comes near it.
_MASKED = 1e37
# What no input can take further needs no room: only to be rounded in float16.
KNOWN_LIMIT = FLOAT16.largest * (1 - 2.0**-8)


@dataclass(frozen=True, slots=True)
class Peak:
    """One operation of one module, and the largest finite |number| that came out of it."""

    module: str  # as in `named_modules()`; the innermost that was running
    op: str  # torch's name: "aten.mul.Tensor"
    largest: float


@dataclass(frozen=True, slots=True)
class Peaks:
    """What was computed in 16 bit in one or more calls of a model."""

    operations: Mapping[tuple[str, str], float]  # by module and op
    blocks: Mapping[str, float]  # what each of the asked-for modules returned
    nonfinite: bool  # NaN or Inf came up
    known: frozenset[tuple[str, str]] = frozenset()  # operations whose figure is what any input can make it at most

    @property
    def largest(self) -> Peak | None:
        """The largest of all; None where nothing was computed in 16 bit."""
        if not self.operations:
            return None
        (module, op), value = max(self.operations.items(), key=lambda item: item[1])
        return Peak(module, op, value)

    def of(self, other: Peak) -> float:
        """Return the peak of the same operation of the same module; 0 where it was not made."""
        return self.operations.get((other.module, other.op), 0.0)

    def beyond(self, limit: float) -> list[Peak]:
        """Return the operations that exceed `limit`, largest first.

        A figure that is known exactly, as that of an embedding, needs none of the room that `limit` keeps.
        """
        exceeding = [
            Peak(*key, value)
            for key, value in self.operations.items()
            if value > (max(limit, KNOWN_LIMIT) if key in self.known else limit)
        ]
        return sorted(exceeding, key=lambda one: -one.largest)

    def scaled(self, peaks: Iterable[Peak], factor: float) -> Peaks:
        """Return the same with some operations' peaks so many times as large."""
        larger = {(one.module, one.op): self.of(one) * factor for one in peaks}
        return replace(self, operations={**self.operations, **larger})


def together(several: Iterable[Peaks]) -> Peaks:
    """Return the peaks of several calls as those of one."""
    operations: dict[tuple[str, str], float] = {}
    blocks: dict[str, float] = {}
    nonfinite = False
    known: set[tuple[str, str]] = set()
    doubtful: set[tuple[str, str]] = set()
    for peaks in several:
        operations.update({key: max(value, operations.get(key, 0.0)) for key, value in peaks.operations.items()})
        blocks.update({name: max(value, blocks.get(name, 0.0)) for name, value in peaks.blocks.items()})
        nonfinite |= peaks.nonfinite
        known |= peaks.known
        doubtful |= peaks.operations.keys() - peaks.known
    return Peaks(operations, blocks, nonfinite, frozenset(known - doubtful))


def record_peaks(
    model: nn.Module, batches: Iterable[Mapping[str, Any]], dtype: torch.dtype, *, blocks: Iterable[str] = ()
) -> Peaks:
    """Call `model(**batch)` on every batch, and return the largest number of every operation with results in `dtype`.

    Args:
        model: Called as it is, in inference mode.
        batches: Inputs.
        dtype: What counts: what a model that is held in it computes in float32 on the way would not be in float16
            either.
        blocks: Names of modules whose returned hidden states are looked at as such.
    """
    with peaks_of_block(model, dtype, blocks=blocks) as peaks, torch.inference_mode():
        for batch in batches:
            model(**batch)
    return peaks()


@contextmanager
def peaks_of_block(
    model: nn.Module, dtype: torch.dtype, *, blocks: Iterable[str] = ()
) -> Iterator[Callable[[], Peaks]]:
    """Look at every run of `model` inside; yield what returns the peaks of all runs so far. Arguments: as `record_peaks`."""
    # A norm with a shift is in float32 once the model is in float16: only what it returns is not.
    wide = frozenset(name for name, _, shift in shifted_modules(model) if shift.is_on_norm)
    watch = _Watch(dtype, wide, KnownBounds(model))
    returned: dict[str, torch.Tensor] = {}
    with names_known(model, watch), _outputs_seen(model, blocks, returned, watch), watch:
        yield lambda: Peaks(
            {key: float(value) for key, value in watch.found.items()},
            {name: float(value) for name, value in returned.items()},
            bool(watch.spoiled) if watch.spoiled is not None else False,
            frozenset(watch.found.keys() - watch.doubtful),
        )


class Follower(Protocol):
    """Who is to know which module is running."""

    path: list[str]  # of names, the innermost last

    def left(self, output: Any) -> None:
        """Take the innermost off, which has returned."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks at what every operation returns. Figures stay on the device until the end."""

    def __init__(self, dtype: torch.dtype, wide: frozenset[str], bounds: KnownBounds) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self._wide = wide  # modules that compute in float32
        self._bounds = bounds
        self.path = [""]
        self.found: dict[tuple[str, str], torch.Tensor] = {}
        self.doubtful: set[tuple[str, str]] = set()  # of those, what another input may take further
        self.spoiled: torch.Tensor | None = None
        self._looks = False  # what it computes itself is none of the model's

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outside = len(self.path) == 1
        if outside or self._looks or self.path[-1] in self._wide:
            return result
        self._bounds.note(func, args, kwargs, result)
        if not _is_view(func, args, result) and not _is_unwritten(func):
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == self.dtype and tensor.numel():
                    self._look(str(func), tensor)
        return result

    def left(self, output: Any) -> None:
        """Note that the innermost module has returned."""
        name = self.path.pop()
        if name in self._wide and isinstance(output, torch.Tensor):
            self.path.append(name)
            self._look("output", output)
            self.path.pop()

    def _look(self, op: str, tensor: torch.Tensor) -> None:
        key, bound = (self.path[-1], op), self._bounds.of(tensor)
        if bound is None:
            sizes = tensor.detach().abs()
            sizes = torch.where(sizes < _MASKED, sizes, 0)  # NaN compares false as well
            largest = sizes.amax().float()
            self.doubtful.add(key)
        else:
            largest = torch.tensor(bound if bound < _MASKED else 0.0, device=tensor.device)
        self.found[key] = torch.maximum(self.found[key], largest) if key in self.found else largest

    def returned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Look at a hidden state; return its largest |number|."""
        self._looks = True
        largest = tensor.detach().abs().amax().float()
        bad = ~torch.isfinite(largest)
        self.spoiled = bad if self.spoiled is None else self.spoiled | bad
        self._looks = False
        return largest


def _is_view(func: Any, args: tuple[Any, ...], result: Any) -> bool:
    """Whether an operation returns what it was given, in another form. Never in another dtype: that is a cast."""
    may_be = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
    return may_be and getattr(result, "dtype", None) == getattr(args[0] if args else None, "dtype", None)


def _is_unwritten(func: Any) -> bool:
    """Whether an operation returns memory as it was: its numbers are nobody's."""
    return str(func).startswith(("aten.empty", "aten.new_empty"))


@contextmanager
def names_known(model: nn.Module, watch: Follower) -> Iterator[None]:
    """Have `watch` know which module is running."""
    handles = []
    for name, module in model.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            watch.path.append(name)

        def leave(_module: nn.Module, _args: Any, output: Any) -> None:
            watch.left(output)

        # Outside of the module's own hooks: what they compute is the module's.
        handles.append(module.register_forward_pre_hook(enter, prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _outputs_seen(
    model: nn.Module, names: Iterable[str], returned: dict[str, torch.Tensor], watch: _Watch
) -> Iterator[None]:
    handles = []
    try:
        for name in names:

            def look(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                hidden = output[0] if isinstance(output, (tuple, list)) and output else output
                if isinstance(hidden, torch.Tensor) and hidden.is_floating_point():
                    largest = watch.returned(hidden)
                    returned[name] = torch.maximum(returned[name], largest) if name in returned else largest

            handles.append(model.get_submodule(name).register_forward_hook(look))
        yield
    finally:
        for handle in handles:
            handle.remove()
