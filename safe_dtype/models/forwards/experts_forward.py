"""Have mixtures of experts multiply few tokens by the weights of the chosen experts alone, from the stacks as they lie.

Transformers keeps the experts of a layer in two tensors, and computes them by one of several functions, which its config
names. Of its two own for products of all chosen experts at once, one copies their weights for every token, and the other
hands all experts to a kernel. Here those of the chosen are read once each, where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.integrations import moe

from ...kernels.column_product import has_column_code, multiply_columns_by_some
from ...kernels.row_product import Share, has_code, multiply_rows_by_some
from .module_forward import put_on, value_of
from .plain_calls import is_plain, is_watched, needs_gradient

# Below this, the calls around the products of one expert cost more than they save.
_LEAST_ELEMENTS = 2**16
_REPLACED = ("batched_mm_experts_forward", "grouped_mm_experts_forward")
# The weight and the bias of the first product, and of the second.
_Stacks: TypeAlias = "tuple[Tensor, Tensor | None, Tensor, Tensor | None]"


@dataclass(frozen=True, slots=True)
class CompiledExperts:
    """The class of experts, its forward and how it gates, as they were when they were known."""

    kind: type[nn.Module]
    forward: Callable[..., Any]
    gate: Any
    dtype: torch.dtype
    most_rows: int

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""


def compile_experts(model: nn.Module, dtype: torch.dtype, most_rows: int) -> int:
    """Have the experts of a model with weights in `dtype` compute up to `most_rows` tokens compiled; return how many modules.

    Each product is within one rounding of what it was. More tokens, calls whose gradients are asked for or that somebody
    follows, and experts that are computed by any other function than transformers' own two, are the class's own.
    """
    if not has_code(dtype, dtype) or not has_column_code(dtype):
        return 0
    count = 0
    for module in model.modules():
        kind = type(module)
        if _is_dispatched(kind.forward) and "forward" not in module.__dict__ and _is_worth_it(module, dtype):
            gate = getattr(kind, "_apply_gate", None)
            put_on(module, CompiledExperts(kind, kind.forward, gate, dtype, most_rows), _forward)
            count += 1
    return count


def _is_dispatched(forward: Any) -> bool:
    """Whether a forward is that which transformers' decorator of experts has made, with its own list of functions."""
    if type(forward) is not FunctionType or forward.__code__ not in _dispatchers():
        return False
    return any(cell.cell_contents is moe.ALL_EXPERTS_FUNCTIONS for cell in forward.__closure__ or ())


def _is_worth_it(module: Any, dtype: torch.dtype) -> bool:
    stacks = _stacks(module, dtype)
    return stacks is not None and stacks[0][0].numel() >= _LEAST_ELEMENTS


@cache
def _dispatchers() -> tuple[CodeType, ...]:
    decorate = getattr(moe, "use_experts_implementation", None)
    forwards: list[CodeType] = []
    pending = [decorate.__code__] if type(decorate) is FunctionType else []
    while pending:
        codes = [one for one in pending.pop().co_consts if isinstance(one, CodeType)]
        forwards += [one for one in codes if one.co_name == "forward"]
        pending += codes
    return tuple(forwards)


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    if len(args) == 3 and not kwargs and not torch.compiler.is_compiling() and not is_watched():
        with torch._C.DisableTorchFunction():
            result = _computed(module, *args)
        if result is not None:
            return result
    return type(module).forward(module, *args, **kwargs)


def _computed(module: Any, states: Any, chosen: Any, weights: Any) -> Tensor | None:
    """Return what transformers' own functions would; None where the class is to compute it."""
    value = value_of(module)
    if (
        not isinstance(value, CompiledExperts)
        or type(module) is not value.kind
        or value.kind.forward is not value.forward
        or getattr(value.kind, "_apply_gate", None) is not value.gate
        or not _takes(value, states, chosen, weights)
        or not _is_by_transformers(module)
    ):
        return None
    stacks = _stacks(module, value.dtype)
    if stacks is None or needs_gradient(states, weights, *stacks):
        return None
    if states.shape[1] != stacks[0].shape[1 if module.is_transposed else 2]:
        return None
    numbers: list[int] = chosen.flatten().tolist()
    if not 0 <= min(numbers) <= max(numbers) < len(stacks[0]):
        return None
    return _summed(module, states, numbers, weights, stacks)


def _summed(
    module: Any, states: Tensor, numbers: list[int], weights: Tensor, stacks: _Stacks
) -> Tensor | None:  # fmt: skip
    """Return the weighted sums of what the chosen experts make of each token; None where their gate makes something else.

    Args:
        module: The experts.
        states: Shape (tokens, hidden).
        numbers: Of the chosen experts, token by token.
        weights: Shape (tokens, experts of a token).
        stacks: As of `_stacks`.
    """
    up, up_bias, down, down_bias = stacks
    per_token = weights.shape[1]
    if len(states) == 1:  # each expert, once, multiplies the same row
        order = None
        first = [(number, 0, 1) for number in numbers]
        second = [(number, place, 1) for place, number in enumerate(numbers)]
    else:
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        first = second = _shares([numbers[place] for place in order])
        states = states[torch.tensor([place // per_token for place in order], device="cpu")]
    multiply = multiply_columns_by_some if module.is_transposed else multiply_rows_by_some
    product = multiply(states, up, up_bias, first)
    product = module._apply_gate(product) if module.has_gate else module.act_fn(product)
    inputs = down.shape[1 if module.is_transposed else 2]
    if not is_plain(product) or product.dtype is not down.dtype or product.shape != (len(numbers), inputs):
        return None
    product = multiply(product, down, down_bias, second)
    if getattr(module, "has_post_expert_norm", False):
        product = module.post_expert_norm(product)
    dtype = product.dtype
    if order is not None:
        back = sorted(range(len(order)), key=order.__getitem__)
        product = product[torch.tensor(back, device="cpu")]
    weighted = product * weights.reshape(-1, 1)
    return weighted.view(-1, per_token, product.shape[1]).sum(dim=1).to(dtype)


def _shares(numbers: Sequence[int]) -> list[Share]:
    """Return which rows each expert multiplies, of sorted numbers of experts, one for each row."""
    shares: list[Share] = []
    for row, number in enumerate(numbers):
        if shares and shares[-1][0] == number:
            shares[-1] = (number, shares[-1][1], shares[-1][2] + 1)
        else:
            shares.append((number, row, 1))
    return shares


def _takes(value: CompiledExperts, states: Any, chosen: Any, weights: Any) -> bool:
    """Whether these are tokens and experts that products are compiled for."""
    return (
        all(is_plain(one) and one.dim() == 2 for one in (states, chosen, weights))
        and states.dtype is value.dtype
        and 0 < len(states) <= value.most_rows
        and chosen.dtype is torch.int64
        and chosen.shape == weights.shape
        and len(chosen) == len(states)
        and chosen.numel() > 0
        and weights.is_floating_point()
        and not torch.is_autocast_enabled("cpu")
    )


def _is_by_transformers(module: Any) -> bool:
    """Whether the experts would be computed by a function of transformers that does so on one device."""
    asked = getattr(module.config, "_experts_implementation", None)
    function = moe.ALL_EXPERTS_FUNCTIONS.get(asked) if asked in moe.ALL_EXPERTS_FUNCTIONS else None
    return (
        function is not None
        and any(function is getattr(moe, name, None) for name in _REPLACED)
        and not getattr(module, "_is_expert_parallel", False)
    )


def _stacks(module: Any, dtype: torch.dtype) -> _Stacks | None:
    """Return the weights and biases of the first and of the second product; None where these are not plain stacks."""
    if not all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed")):
        return None  # of a release of transformers that computes them otherwise
    first = "gate_up_proj" if module.has_gate else "up_proj"
    both: list[Any] = []
    for name in (first, "down_proj"):
        weight, bias = (module._parameters.get(one) for one in (name, f"{name}_bias"))
        if not _lies_plainly(weight, dtype, dim=3) or {name, f"{name}_bias"} & dict.keys(module.__dict__):
            return None
        outputs = weight.shape[2 if module.is_transposed else 1]
        if module.has_bias and not (_lies_plainly(bias, dtype, dim=2) and bias.shape == (len(weight), outputs)):
            return None
        both += (weight, bias if module.has_bias else None)
    return tuple(both) if len(both[0]) == len(both[2]) else None


def _lies_plainly(tensor: Any, dtype: torch.dtype, dim: int) -> bool:
    return (
        type(tensor) is nn.Parameter
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.dtype is dtype
        and tensor.dim() == dim
        and (tensor.stride(2) == 1 if dim == 3 else tensor.is_contiguous())
        and not tensor.is_neg()
    )
