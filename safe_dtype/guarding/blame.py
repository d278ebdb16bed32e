"""Find the module in which a step went wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..models.casting import is_finite
from ..numerics import uncompiled
from ..processes.handler_exceptions import is_of_a_signal
from .passing_hooks import hooked

Ask = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@dataclass(frozen=True, slots=True)
class Blame:
    """The module that failed, and what went into it; both None where no single module can be named."""

    module: nn.Module | None = None
    largest_input: float | None = None  # largest finite |input|
    # The calls that were running, of this module and of those around it, innermost first: module, args and kwargs.
    calls: tuple[tuple[nn.Module, tuple[Any, ...], dict[str, Any]], ...] = ()


def module_raising(model: nn.Module, traceback: TracebackType | None) -> nn.Module | None:
    """Return the innermost module of `model` that was running when an exception was raised."""
    members = set(model.modules())
    innermost = None
    while traceback is not None:
        running = traceback.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and running in members:
            innermost = running
        traceback = traceback.tb_next
    return innermost


def module_spoiling(model: nn.Module, run: Callable[[], Any], ask: Ask | None = None) -> Blame:
    """Run the step once more, and return the first module that made a non-finite output of finite inputs.

    Modules finish from the leaves up, so an overflow between two leaves (in an attention product, say) falls to the
    smallest module around it. Raises nothing: a step that fails otherwise this time blames nobody. `ask` is called with
    the module, its arguments and its output, before the step goes on.
    """
    blames: list[Blame] = []
    running: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append((module, args, kwargs))

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls = tuple(reversed(running))
        running.pop()
        if not blames and not is_finite(_parts(output)) and is_finite([args, kwargs]):
            blames.append(Blame(module, largest_finite([args, kwargs]), calls))
            if ask is not None:
                ask(module, args, kwargs, output)

    # A compiled form leaves the modules' hooks out. What a NaN may lead to further on is of no interest.
    with (
        suppress(RuntimeError), hooked(model.modules(), before=enter, after=look),
        uncompiled(),
    ):  # fmt: skip
        run()
    return blames[0] if blames else Blame()


def runs_modules(model: nn.Module, run: Callable[[], Any]) -> bool:
    """Run once more, and return whether that calls any module in `model`, however it ends."""
    called: list[nn.Module] = []

    def note(module: nn.Module, _args: Any, _kwargs: Any) -> None:
        called.append(module)

    # Before any other hook, which may be what fails.
    with hooked(model.modules(), before=note), uncompiled():
        try:
            run()
        except Exception as exc:
            if is_of_a_signal(exc):
                raise
    return bool(called)


def largest_finite(value: Any) -> float | None:
    """Return the largest finite |number| in the floating tensors of `value`; None where there is none."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() or value.numel() == 0 or value.is_meta:
            return None
        sizes = value.detach().float().abs()
        finite = sizes[sizes.isfinite()]
        return float(finite.amax()) if finite.numel() else None
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (tuple, list)):
        return None
    return max((largest for part in value if (largest := largest_finite(part)) is not None), default=None)


def name_of(model: nn.Module, module: nn.Module | None) -> str | None:
    """Return the name of `module` in `model`, as in `named_modules()`; the class for the model itself."""
    if module is None:
        return None
    name = next((name for name, member in model.named_modules() if member is module), None)
    return name or type(module).__name__


def _parts(output: Any) -> Any:
    # A ModelOutput is a dict, but with a cache in it that may be poisoned by an earlier module.
    return (
        {name: value for name, value in output.items() if "past" not in str(name)}
        if isinstance(output, dict)
        else output
    )
