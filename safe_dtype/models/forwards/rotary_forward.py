"""Have attention turn queries and keys without temporaries, where it calls the function for it that most models have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.rotary import can_turn, turn
from . import known_forwards
from .known_code import is_known
from .module_forward import has_forward, put_on, value_of
from .plain_calls import is_plain, is_watched, needs_gradient
from .unwrapped import old_names, without_old_names

# For fewer, looking at what is turned takes as long as temporaries: 15 us a layer. At 512 it is 0.3 ms in the place of 4.7.
_LEAST_ROWS = 16
TURN, HALF = "apply_rotary_pos_emb", "rotate_half"


@dataclass(frozen=True, slots=True)
class CompiledRotation:
    """The forward of a class, and the same code that calls another function of one name."""

    forward: Callable[..., Any]
    turning: Callable[..., Any]
    old_names: frozenset[str]  # of arguments, which the forward has renamed first

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""


class _Globals(dict[str, Any]):
    """The globals of a function, as they are at each look, but for one name."""

    __slots__ = ("_source",)

    def __init__(self, source: dict[str, Any], name: str, value: Any) -> None:
        super().__init__({name: value, "__builtins__": source["__builtins__"]})
        self._source = source

    def __missing__(self, name: str) -> Any:
        return self._source[name]


def compile_rotations(model: nn.Module, dtype: torch.dtype) -> int:
    """Have attention modules of a model in `dtype` turn queries and keys compiled; return how many there are.

    Results have the bits of before. Calls that somebody follows, or whose gradients are asked for, are the class's own,
    and so is every call where a function of its file was replaced.
    """
    if not can_turn(dtype):
        return 0
    count = 0
    made: dict[Any, CompiledRotation | None] = {}
    for module in model.modules():
        forward = type(module).forward
        if forward not in made:
            made[forward] = _rotation(forward)
        rotation = made[forward]
        if rotation is not None and "forward" not in module.__dict__:
            put_on(module, rotation, _forward)
            count += 1
    return count


def _rotation(of_class: Any) -> CompiledRotation | None:
    forward = without_old_names(of_class)
    if type(forward) is not FunctionType or TURN not in forward.__code__.co_names or forward.__closure__:
        return None
    source = forward.__globals__
    original, half = source.get(TURN), source.get(HALF)
    if not is_known(original, known_forwards.ROTARY):
        return None

    def rotate(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 4 and not kwargs:
            with torch._C.DisableTorchFunction():
                both = turned(source, (original, half), *args)
            if both is not None:
                return both
        return source[TURN](*args, **kwargs)

    own = _Globals(source, TURN, rotate)
    turning = FunctionType(forward.__code__, own, forward.__name__, forward.__defaults__)
    turning.__kwdefaults__ = forward.__kwdefaults__
    return CompiledRotation(of_class, turning, old_names(of_class))


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # before anything is read that a graph would be guarded by
        return type(module).forward(module, *args, **kwargs)
    forward, value = type(module).forward, value_of(module)
    states = args[0] if args else kwargs.get("hidden_states")
    is_ours = isinstance(value, CompiledRotation) and forward is value.forward and value.old_names.isdisjoint(kwargs)
    if is_ours and _has_many_rows(states) and not is_watched():
        forward = value.turning
    return forward(module, *args, **kwargs)


def _has_many_rows(states: Any) -> bool:
    return isinstance(states, Tensor) and states.dim() == 3 and states.shape[0] * states.shape[1] >= _LEAST_ROWS


def turned(
    source: dict[str, Any], known: tuple[Any, Any], query: Any, key: Any, cos: Any, sin: Any
) -> tuple[Tensor, Tensor] | None:
    """Return queries and keys turned by compiled code; None where the functions of `source`, a file, are to turn them.

    `known`: what the file turns both by, and half of them, as they were when they were known.
    """
    is_ours = is_unchanged(source, known) and _turns(query, key, cos, sin)
    return turn(query, key, cos, sin) if is_ours else None


def is_unchanged(source: dict[str, Any], known: tuple[Any, Any]) -> bool:
    """Whether a file turns queries and keys by what it was known to turn them by: as of `turned`."""
    return source[TURN] is known[0] and source[HALF] is known[1]


def are_tables(cos: Any, sin: Any, dtype: torch.dtype, shape: tuple[int, int, int]) -> bool:
    """Whether queries and keys in `dtype`, of such a batch, positions and width, can be turned by these compiled."""
    batch, positions, width = shape
    states = torch.Size((batch, 1, positions, width))
    return (
        is_plain(cos)
        and is_plain(sin)
        and cos.dtype is sin.dtype is dtype
        and width % 2 == 0
        and can_turn(dtype)
        and _is_table(cos, states)
        and _is_table(sin, states)
        and not needs_gradient(cos, sin)
    )


def is_replaced(module: nn.Module) -> bool:
    """Whether a module computes by a forward that is neither its class's nor ours."""
    return "forward" in module.__dict__ and not has_forward(module, _forward)


def _turns(query: Any, key: Any, cos: Any, sin: Any) -> bool:
    """Whether these are what `turn` takes."""
    if not (is_plain(query) and is_plain(key) and is_plain(cos) and is_plain(sin)):
        return False
    dtype, shape = query.dtype, query.shape
    return (
        key.dtype is cos.dtype is sin.dtype is dtype
        and can_turn(dtype)
        and _is_of_states(query, shape)
        and _is_of_states(key, shape)
        and _is_table(cos, shape)
        and _is_table(sin, shape)
        and not needs_gradient(query, key, cos, sin)
    )


def _is_of_states(states: Tensor, shape: torch.Size) -> bool:
    if len(shape) != 4 or shape[3] % 2 or not states.numel() or states.dim() != 4 or states.stride(3) != 1:
        return False
    return states.shape[0] == shape[0] and states.shape[2:] == shape[2:]


def _is_table(table: Tensor, shape: torch.Size) -> bool:
    return (
        table.dim() == 3 and table.shape[0] in (1, shape[0]) and table.shape[1:] == shape[2:] and table.stride(2) == 1
    )
