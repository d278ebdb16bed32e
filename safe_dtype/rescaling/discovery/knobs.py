"""What can be multiplied in a model: its parameters, the numbers that its modules keep, and what norms take and give."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...facts import Part, Rows
from .norms import DifferentiableNorms
from .trace import Trace, unchanged, with_first, with_first_given
from .twin import run_twin

# An eps in the trained model is too small to be seen in its outputs. On the twin each is as large as this.
RAISED_EPS = 0.05
_LARGEST_EPS = 0.5

_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, UserWarning)


@dataclass(frozen=True, slots=True)
class Knob:
    """One thing to multiply."""

    part: Part
    target: str
    rank: tuple[int, float] = (0, 0.0)  # the lower, the rather it is moved
    rows: Rows | None = None  # None: all of it

    @property
    def is_eps(self) -> bool:
        """Whether this is the small number that a norm adds."""
        return self.part is Part.NUMBER and is_eps_name(self.target.rpartition(".")[2])

    @property
    def module(self) -> str:
        """The name of the module that it belongs to."""
        return self.target if self.part in (Part.INPUT, Part.OUTPUT) else self.target.rpartition(".")[0]


def is_eps_name(name: str) -> bool:
    """Whether an attribute called `name` is the eps of a norm."""
    return "eps" in name


def knobs_of(model: PreTrainedModel, traced: Trace, batch: Mapping[str, Tensor]) -> tuple[Knob, ...]:
    """Return everything in `model` that can be multiplied, in the order in which it is to be considered."""
    knobs = [*_weights(model, traced), *_numbers(model, traced, batch), *_borders(model, traced)]
    return tuple(sorted(knobs, key=lambda knob: knob.rank))


def _weights(model: nn.Module, traced: Trace) -> Iterator[Knob]:
    for path, module in model.named_modules():
        own = [(name, one) for name, one in module.named_parameters(recurse=False) if one.is_floating_point()]
        is_leaf = not any(True for child in module.children() for _ in child.parameters())
        # Writers before gains, and last what stands loose in a block: mostly multipliers of its residual connection.
        kind = 4 if not is_leaf else 2 if any(one.dim() > 1 for _, one in own) else 3
        for place, (name, _) in enumerate(own):
            when = traced.when(path) + place / len(own)  # of up_proj and down_proj in one module, the latter
            yield Knob(Part.WEIGHT, f"{path}.{name}" if path else name, (kind, -when))


def _numbers(model: PreTrainedModel, traced: Trace, batch: Mapping[str, Tensor]) -> Iterator[Knob]:
    """Yield the numbers that modules compute with: those in whose place a tensor can stand."""
    by_kind: dict[tuple[type[nn.Module], str], list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and value and math.isfinite(value) and not isinstance(module, nn.Dropout):
                by_kind.setdefault((type(module), name), []).append((path, module))
    kinds = list(by_kind)
    if not _runs_with_tensors(model, batch, [(module, name) for _, name in kinds for _, module in by_kind[_, name]]):
        kinds = [
            kind for kind in kinds if _runs_with_tensors(model, batch, [(one, kind[1]) for _, one in by_kind[kind]])
        ]
    for kind in kinds:
        name = kind[1]
        for path, module in by_kind[kind]:
            is_eps = is_eps_name(name) and getattr(module, name) < _LARGEST_EPS
            yield Knob(Part.NUMBER, f"{path}.{name}" if path else name, (1 if is_eps else 5, -traced.when(path)))


def _runs_with_tensors(
    model: PreTrainedModel, batch: Mapping[str, Tensor], places: Iterable[tuple[nn.Module, str]]
) -> bool:
    values = [(module, name, getattr(module, name)) for module, name in places]
    for module, name, value in values:
        setattr(module, name, torch.tensor(value, dtype=torch.float64, requires_grad=True))
    every_time = torch.is_warn_always_enabled()
    try:
        with unchanged(model), DifferentiableNorms(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # What becomes a Python number on the way has no derivative. By itself torch warns of it once a process.
            torch.set_warn_always(True)
            warnings.filterwarnings("error", message="Converting a tensor with requires_grad")
            run_twin(model, batch)
    except _FAILURES:
        return False
    finally:
        torch.set_warn_always(every_time)
        for module, name, value in values:
            setattr(module, name, value)
    return True


def _borders(model: nn.Module, traced: Trace) -> Iterator[Knob]:
    for path in traced.norms:
        yield Knob(Part.OUTPUT, path, (6, -traced.order[path]))
        yield Knob(Part.INPUT, path, (7, -traced.order[path]))
    for stack in traced.stacks:
        yield Knob(Part.INPUT, stack.blocks[0], (0, traced.order[stack.blocks[0]]))
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path in traced.order:
            yield Knob(Part.OUTPUT, path, (6, -traced.order[path]))


@contextmanager
def turned(model: PreTrainedModel, knobs: Iterable[Knob], gain: float) -> Iterator[dict[Knob, Tensor]]:
    """Make a model differentiable in its knobs: yield for each the tensor whose logarithm it stands for.

    Run it within `DifferentiableNorms`.

    Args:
        model: A twin; afterwards it is as it was.
        knobs: What to differentiate by.
        gain: By which every matrix is multiplied, embeddings aside.
    """
    leaves: dict[Knob, Tensor] = {}
    undo: list[Any] = []
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and is_eps_name(name) and 0 < value < _LARGEST_EPS:
                undo.append((setattr, module, name, value))
                setattr(module, name, RAISED_EPS)
    undo += [(setattr, one, "data", one.data) for one in model.parameters()]
    multiply_matrices(model, gain)
    for knob in knobs:
        module = model.get_submodule(knob.module)
        name = knob.target.rpartition(".")[2]
        if knob.part is Part.WEIGHT:
            leaves[knob] = getattr(module, name).requires_grad_()
            undo.append((setattr, leaves[knob], "requires_grad", False))
        elif knob.part is Part.NUMBER:
            undo.append((setattr, module, name, getattr(module, name)))
            leaves[knob] = torch.tensor(getattr(module, name), dtype=torch.float64, requires_grad=True)
            setattr(module, name, leaves[knob])
        else:
            leaves[knob] = torch.ones((), dtype=torch.float64, requires_grad=True)
            undo.append((_multiply_at(module, knob.part, leaves[knob]).remove,))
    try:
        with unchanged(model):
            yield leaves
    finally:
        for function, *args in reversed(undo):
            function(*args)


def multiply_matrices(model: nn.Module, gain: float) -> None:
    """Multiply every matrix by `gain`, embeddings aside; each parameter gets a tensor of its own for that."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if (
                parameter.dim() > 1
                and parameter.is_floating_point()
                and not isinstance(module, nn.Embedding)
                and gain != 1.0
            ):
                parameter.data = parameter.data * gain


def _multiply_at(module: nn.Module, part: Part, factor: Tensor) -> torch.utils.hooks.RemovableHandle:
    def enter(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        return with_first_given(args, kwargs, lambda first: first * factor)

    def leave(_module: nn.Module, _args: Any, output: Any) -> Any:
        return with_first(output, lambda first: first * factor)

    if part is Part.INPUT:
        return module.register_forward_pre_hook(enter, with_kwargs=True)
    return module.register_forward_hook(leave)
