"""Methods that return codes, tokens or texts: a NaN on the way to those is seen only where it arises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ...verifying.result_fields import is_looked_at, results_of
from ..passing_hooks import hooked


class Codes(NamedTuple):
    """What a method returned, without any floating numbers, and the largest number that each part of the model gave."""

    output: Any
    largest: list[torch.Tensor]


def with_numbers(module: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return `method`, a bound method of `module`, returning `Codes` wherever its result holds no floating numbers.

    A guarded step looks at what it returns, and `argmin` makes a code of NaN as of anything else. So it is given the
    largest number in the output of each part of `module`, by one reduction each; they are not read here.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        largest: list[torch.Tensor] = []

        def look(_part: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            largest.extend(tensor.detach().amax() for _, tensor in results_of(output) if _is_real(tensor))

        with hooked(_parts(module), after=look):
            output = method(*args, **kwargs)
        return output if results_of(output) else Codes(output, largest)

    return call


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):  # never called themselves
            yield from _parts(child)
        elif child._compiled_call_impl is None:  # a hook on what was compiled in place would have it compiled anew
            yield child


def _is_real(tensor: torch.Tensor) -> bool:
    return is_looked_at(tensor) and not tensor.is_complex()
