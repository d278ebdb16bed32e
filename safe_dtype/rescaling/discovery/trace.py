"""One run of a model, watched: which modules run in which order, which are stacks of blocks, which are norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors.of_the_moment import is_of_the_moment
from .twin import exact, run_twin

# A norm forgets how large its input is, up to its eps.
_FORGOTTEN = 0.05


@dataclass(frozen=True, slots=True)
class Stack:
    """Blocks that hand one hidden state on, in the order in which they run."""

    lists: tuple[str, ...]  # dotted names of the module lists that hold them
    blocks: tuple[str, ...]  # dotted; one that runs several times stands here once
    normalised: bool  # each of them returns, or is given, what a norm returned


@dataclass(frozen=True, slots=True)
class Trace:
    """What was seen of a model."""

    order: Mapping[str, int]  # modules that ran, by name: the how manieth to finish, the first time
    norms: frozenset[str]
    stacks: tuple[Stack, ...]
    modules: Mapping[str, int]  # all of them, as they stand in the model

    def when(self, module: str) -> float:
        """Return a number that is larger for modules that run later; what did not run comes first, as it stands."""
        return self.order.get(module, self.modules[module] / len(self.modules) - 1.0)


@dataclass(slots=True)
class _Call:
    """A module that ran, with the first floating tensor that it was given and the first that it returned."""

    name: str
    module: nn.Module
    first_input: Tensor | None
    returned: Tensor | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(slots=True)
class _Chain:
    """A stack in the making."""

    lists: dict[str, None] = field(default_factory=dict)
    calls: list[_Call] = field(default_factory=list)


def first_given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first floating tensor among the arguments of a call: what a move of a module's input moves."""
    return next((value for value in (*args, *kwargs.values()) if is_number(value)), None)


def first_returned(output: Any) -> Tensor | None:
    """Return the first tensor of an output if it is floating: what a move of a module's output moves."""
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if is_number(output) else None


def with_first(output: Any, changed: Callable[[Tensor], Tensor]) -> Any:
    """Return an output whose first tensor is replaced by what `changed` makes of it."""
    if isinstance(output, (tuple, list)) and output:
        values = [with_first(output[0], changed), *output[1:]]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    return changed(output) if is_number(output) else output


def with_first_given(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], changed: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, the first floating tensor replaced by what `changed` makes of it."""
    first = first_given(args, kwargs)
    if first is None:
        return args, dict(kwargs)
    other = changed(first)
    return (
        tuple(other if value is first else value for value in args),
        {key: other if value is first else value for key, value in kwargs.items()},
    )


def is_number(value: Any) -> bool:
    """Whether `value` is a floating tensor."""
    return isinstance(value, Tensor) and value.is_floating_point()


def trace(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> Trace:
    """Run `model` on the first batch, and on the others if something did not run; return what ran."""
    calls: list[_Call] = []
    order: dict[str, int] = {}
    weighty = {name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))}
    for number, batch in enumerate(batches):
        if number and weighty <= order.keys():
            break
        more: list[_Call] = calls if not number else []
        with unchanged(model), _recorded(model, more), torch.no_grad():
            run_twin(model, batch)
        for call in more:
            order.setdefault(call.name, len(order))
    with torch.no_grad(), exact():
        norms = {call.name: call for call in calls if _is_norm(call)}
    from_norms = {id(call.returned) for call in calls if call.name in norms}
    modules = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return Trace(order, frozenset(norms), tuple(_stacks(model, calls, from_norms)), modules)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards no module remembers what it was given: some keep a state from one call to the next."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, values in before:
            for name, value in list(vars(module).items()):
                if value is values.get(name, module):
                    continue
                if name in values:
                    setattr(module, name, values[name])
                else:
                    delattr(module, name)


@contextmanager
def _recorded(model: nn.Module, calls: list[_Call]) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():

        def record(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            calls.append(_Call(name, module, first_given(args, kwargs), first_returned(output), args, kwargs))

        handles.append(module.register_forward_hook(record, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_norm(call: _Call) -> bool:
    """Whether a leaf without matrices returns nearly the same of an input four times as large."""
    first, returned = call.first_input, call.returned
    if first is None or returned is None or first.shape != returned.shape or not is_small_leaf(call.module):
        return False
    try:
        as_given, larger = (_called(call, factor) for factor in (1.0, 4.0))
    except (RuntimeError, TypeError, ValueError) as exc:  # it changes its input in place, or counts its calls
        if is_of_the_moment(exc):
            raise
        return False
    if not (is_number(as_given) and is_number(larger)) or torch.equal(as_given, first):
        return False
    return bool((larger - as_given).norm() < _FORGOTTEN * as_given.norm())


def is_small_leaf(module: nn.Module) -> bool:
    """Whether a module holds neither modules nor matrices."""
    return not any(True for _ in module.children()) and all(one.dim() <= 1 for one in module.parameters())


def _called(call: _Call, factor: float) -> Any:
    args, kwargs = with_first_given(call.args, call.kwargs, lambda first: first * factor)
    return call.module.forward(*args, **kwargs)


def _stacks(model: nn.Module, calls: list[_Call], from_norms: set[int]) -> Iterator[Stack]:
    holder = _list_of_each_block(model, calls)
    chains: list[_Chain] = []
    from_block: dict[int, _Chain] = {}
    for call in calls:
        if call.name not in holder:
            continue
        held_in = holder[call.name]
        chain = from_block.get(id(call.first_input)) or next((one for one in chains if held_in in one.lists), None)
        if chain is None:
            chain = _Chain()
            chains.append(chain)
        chain.lists[held_in] = None
        chain.calls.append(call)
        from_block[id(call.returned)] = chain
    for chain in chains:
        blocks = tuple(dict.fromkeys(call.name for call in chain.calls))
        handed_on = {id(call.returned) for call in chain.calls}
        normalised = all(id(call.returned) in from_norms for call in chain.calls) or all(
            id(call.first_input) in from_norms - handed_on for call in chain.calls[1:]
        )
        yield Stack(tuple(chain.lists), blocks, normalised)


def _list_of_each_block(model: nn.Module, calls: list[_Call]) -> dict[str, str]:
    """Return the blocks that ran, and the list that each is in: not those lists that are inside of a block."""
    ran: dict[str, list[_Call]] = {}
    for call in calls:
        ran.setdefault(call.name, []).append(call)
    list_of: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)) or any(
            path.startswith(f"{block}.") for block in list_of
        ):
            continue
        names = [f"{path}.{name}" for name, _ in module.named_children()]
        blocks = [name for name in names if name in ran and all(_keeps_shape(call) for call in ran[name])]
        if len(blocks) > 1:
            list_of.update(dict.fromkeys(blocks, path))
    return list_of


def _keeps_shape(call: _Call) -> bool:
    first, returned, module = call.first_input, call.returned, call.module
    is_block = any(one.dim() > 1 for one in module.parameters()) and any(True for _ in module.children())
    return is_block and first is not None and returned is not None and first.shape == returned.shape
