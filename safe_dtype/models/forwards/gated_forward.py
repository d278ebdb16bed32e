"""Have gated MLPs multiply by both of their first weights in one pass, those whose forward is the one that most models have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.row_product import Weighed, multiply_rows_gated
from . import known_forwards
from .blocked_forward import has_rows
from .compiled_products import products_of, weighed
from .known_code import is_known
from .module_forward import has_forward, put_on, value_of
from .plain_calls import is_called_plainly, is_watched

_WEIGHED = ("gate_proj", "up_proj")
_NAMES = (*_WEIGHED, "act_fn")
_SILU_FUNCTION = nn.functional.silu


@dataclass(frozen=True, slots=True)
class CompiledGate:
    """A class, its forward and that of its activation, as they were when they were known."""

    kind: type[nn.Module]
    forward: Callable[..., Any]
    activation: Callable[..., Any]

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""


def compile_gates(model: nn.Module) -> int:
    """Have the gated MLPs of a model compute SiLU of one compiled product times another; return how many there are.

    Both products are in one pass over their weights, and rounded as before. A module inside with a hook, of another
    class, or whose products are not compiled, computes as ever.
    """
    count, known = 0, {}
    for module in model.modules():
        forward = type(module).forward
        if forward not in known:
            known[forward] = is_known(forward, known_forwards.GATED)
        if (
            known[forward]
            and "forward" not in module.__dict__
            and not any(hasattr(type(module), name) for name in _NAMES)  # a property, say, which comes before a module
            and _is_silu(module._modules.get("act_fn"))
            and all(_has_products(module._modules.get(name)) for name in _WEIGHED)
        ):
            activation = type(module.get_submodule("act_fn")).forward
            put_on(module, CompiledGate(type(module), forward, activation), _forward)
            count += 1
    return count


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if len(args) == 1 and not kwargs and not torch.compiler.is_compiling() and not is_watched():
        with torch._C.DisableTorchFunction():
            result = _gated(module, args[0])
        if result is not None:
            down_proj: Any = module.down_proj
            return down_proj(result)
    return type(module).forward(module, *args, **kwargs)


def gated(self: nn.Module, x: Tensor) -> Tensor | None:
    """Return what the forward of an MLP would multiply by its last weight; None where that is not compiled."""
    return _gated(self, x) if has_forward(self, _forward) else None


def gated_weights(self: nn.Module, x: Tensor) -> list[Weighed] | None:
    """Return the two weights that `gated` would multiply by; None where that is not compiled."""
    return _weights(self, x) if has_forward(self, _forward) else None


def _gated(self: nn.Module, x: Tensor) -> Tensor | None:
    """Return what the last weight is multiplied by; None where the class is to compute it."""
    weights = _weights(self, x)
    return None if weights is None else multiply_rows_gated(x, *weights)


def _weights(self: nn.Module, x: Tensor) -> list[Weighed] | None:
    """Return the weights of both products; None where the class is to compute them."""
    value, modules, own = value_of(self), self._modules, self.__dict__
    gate, up, activation = (modules.get(name) for name in _NAMES)
    if (
        not isinstance(value, CompiledGate)
        or type(self) is not value.kind
        or value.kind.forward is not value.forward
        or activation is None
        or type(activation).forward is not value.activation
        or gate is None
        or up is None
        or "forward" in activation.__dict__
        or any(name in own for name in _NAMES)
        or nn.functional.silu is not _SILU_FUNCTION
        or not (is_called_plainly(gate) and is_called_plainly(up) and is_called_plainly(activation))
    ):
        return None
    weights: list[Weighed] = []
    for part in (gate, up):
        weight = weighed(part, x)
        if weight is None:
            return None
        weights.append(weight)
    if weights[0][0].shape != weights[1][0].shape or weights[0][0].dtype is not weights[1][0].dtype:
        return None
    return weights


def _is_silu(module: Any) -> bool:
    return type(module) is nn.SiLU or (
        isinstance(module, nn.Module) and is_known(type(module).forward, known_forwards.SILU)
    )


def _has_products(module: nn.Module | None) -> bool:
    return module is not None and (products_of(module) is not None or has_rows(module))
