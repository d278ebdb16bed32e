"""Which parts of a model capture whole, where the whole model fails to: `torch.compile` is then used on these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from ...devices.random_states import random_states_kept
from .capture import CapturedCall, capture, snapshot

# What a compiled module is specialised on: the shapes of its tensors, and its numbers and flags.
Signature = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """The largest submodules of a model that capture whole, and what they leave out."""

    names: tuple[str, ...]  # as in `named_modules`, in its order; ("",) where the whole model captures
    coverage: float  # share of the model's parameters inside of `names`
    varying: tuple[str, ...]  # capture whole too, but the values of the inputs decide how they are called
    refused: Mapping[str, str]  # name of each module that was descended into -> why it does not capture
    finished: bool  # whether every module was tried before the time was over


_Signatures = Mapping[str, list[Signature]]  # of each module, call by call


def regions(model: torch.nn.Module, inputs: Mapping[str, Any], *, seconds: float = 120.0) -> tuple[str, ...]:
    """Return the names of the largest submodules that capture whole; ("",) where the whole model does.

    Args:
        model: As for `survey`.
        inputs: Keyword arguments of its `forward`.
        seconds: After this time no further module is tried.
    """
    return survey(model, inputs, seconds=seconds).names


def survey(model: torch.nn.Module, inputs: Mapping[str, Any], *, seconds: float = 120.0) -> Survey:
    """Descend from the root, and stop wherever a module captures whole.

    A module is tried with the arguments of its first call in a run of `model`. Modules without parameters, those that
    the run did not call, and the leaves of `torch.nn` are skipped: a leaf alone gains nothing, and compiled in place
    `torch.nn.Embedding` fails with "found no compiled frames". Layers that differ only in weights and `layer_idx`, and
    are called with the same shapes, are tried once.

    An expert of a mixture is called with as many tokens as are routed to it, so that it recompiles for other values.
    Such modules are found by two runs on other values in the same shapes: a module that is then called in other shapes,
    with other flags or another number of times is listed as `varying`. One that is not listed may vary all the same.

    The model is left as it was. The inputs of all modules stay in memory until the end: as much as a run with
    gradients takes.

    Args:
        model: In eval mode, and able to run on `inputs`.
        inputs: Keyword arguments of its `forward`.
        seconds: After this time no further module is tried; one that has begun is finished.
    """
    ends = monotonic() + seconds
    calls, signatures = _recorded(model, inputs)
    unsteady = {name for other in _other_values(inputs) for name in _unlike(model, other, signatures)}
    names: list[str] = []
    varying: list[str] = []
    refused: dict[str, str] = {}
    verdicts: dict[Any, str] = {}
    finished = True
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if not any(True for _ in module.parameters()) or _is_leaf(module):
            continue
        if name in calls:
            if monotonic() > ends:
                finished = False
                break
            problem = _problem(module, calls[name], signatures[name][0], verdicts)
            if not problem:
                (varying if name in unsteady else names).append(name)
                continue
            refused[name] = problem
        children = [(f"{name}.{child}" if name else child, part) for child, part in module.named_children()]
        waiting.extend(reversed(children))
    return Survey(tuple(names), coverage(model, tuple(names)), tuple(varying), refused, finished)


def coverage(model: torch.nn.Module, names: tuple[str, ...]) -> float:
    """Return the share of the parameters of `model` that lie inside of the submodules `names`, each counted once."""
    inside = {one for name in names for one in model.get_submodule(name).parameters()}
    total = sum(one.numel() for one in model.parameters())
    return sum(one.numel() for one in inside) / total if total else 0.0


def _is_leaf(module: torch.nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.") and not isinstance(
        module, (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)
    )


def _problem(module: torch.nn.Module, call: CapturedCall, signature: Signature, verdicts: dict[Any, str]) -> str:
    """Return why `module` does not capture whole, empty where it does; from `verdicts` where an equal one was tried."""
    like = (_structure(module), signature)
    if like not in verdicts:
        # Copied again: a cache that this call fills must not be full when a child of the module is tried.
        verdicts[like] = capture(module, snapshot(call)).reason
    return verdicts[like]


def _structure(module: torch.nn.Module) -> tuple[Any, ...]:
    """Return what decides how the module is traced; it is equal for modules that are traced alike."""
    return tuple(
        (name, type(part), repr(part), tuple(sorted(_settings(part)))) for name, part in module.named_modules()
    )


def _settings(module: torch.nn.Module) -> Iterator[tuple[str, str]]:
    for name, setting in vars(module).items():
        if isinstance(setting, (bool, int, float, str, tuple)) and name != "layer_idx":
            yield name, repr(setting)


def _recorded(model: torch.nn.Module, inputs: Mapping[str, Any]) -> tuple[dict[str, CapturedCall], _Signatures]:
    """Run `model` eagerly; return the first call of each module, and the signatures of all its calls."""
    calls: dict[str, CapturedCall] = {}
    signatures: dict[str, list[Signature]] = {}

    def seen(name: str, call: CapturedCall) -> None:
        if name not in calls:
            calls[name] = snapshot(call)
        signatures.setdefault(name, []).append(_signature(call))

    _watched(model, inputs, seen)
    return calls, signatures


def _unlike(model: torch.nn.Module, inputs: Mapping[str, Any], signatures: _Signatures) -> set[str]:
    """Return the modules whose calls differ from `signatures` when `model` runs on `inputs`."""
    calls: dict[str, list[Signature]] = {}
    try:
        _watched(model, inputs, lambda name, call: calls.setdefault(name, []).append(_signature(call)))
    except (RuntimeError, ValueError, IndexError, AssertionError):
        return set()  # the model rejects these values: nothing is known
    return {name for name in signatures.keys() | calls.keys() if signatures.get(name) != calls.get(name)}


def _watched(model: torch.nn.Module, inputs: Mapping[str, Any], seen: Callable[[str, CapturedCall], None]) -> None:
    def hook(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: seen(name, CapturedCall(args, kwargs))

    handles = [part.register_forward_pre_hook(hook(name), with_kwargs=True) for name, part in model.named_modules()]
    try:
        with torch.no_grad(), random_states_kept():
            model(**snapshot(CapturedCall((), inputs)).kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _other_values(inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield inputs of the same shapes whose values all occur in `inputs`, so that they are as valid."""
    yield {name: tree_map_only(torch.Tensor, _reversed, one) for name, one in inputs.items()}
    yield {name: tree_map_only(torch.Tensor, _repeated, one) for name, one in inputs.items()}


def _reversed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flip(-1) if tensor.dim() else tensor


def _repeated(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[..., :1].expand_as(tensor).contiguous() if tensor.dim() else tensor


def _signature(call: CapturedCall) -> Signature:
    return tuple(
        tuple(value.shape) if isinstance(value, torch.Tensor) else value
        for value in tree_leaves((call.args, dict(call.kwargs)))
        if isinstance(value, (torch.Tensor, bool, int, float))
    )
