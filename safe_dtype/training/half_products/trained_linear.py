"""Linear layers that are trained in float16 with scaled products, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...models.scaled_linear import BELOW_HOOK, become, can_be_scaled
from .scaled_product import Note, Product, scaled_product

_NOTE = "_safe_dtype_note"  # in the __dict__ of a layer whose products are scaled
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class _CopiedPlain:
    """What is copied or stored inside of an attempt, an average of weights say, is the layer of before and after it."""

    def __reduce_ex__(self, _protocol: Any) -> Any:
        plain: Any = type(self).__bases__[-1]
        state = {name: value for name, value in self.__dict__.items() if name != _NOTE}
        if BELOW_HOOK in state:
            state[BELOW_HOOK] = MethodType(plain.forward, self)
        return object.__new__, (plain,), state


class TrainedLinear(_CopiedPlain, nn.Linear):
    """A linear layer whose float16 products are scaled, in forward and backward; in any other dtype it is as ever."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        """Compute; see `scaled_product`."""
        return _computed(self, input, F.linear, super().forward)


class TrainedConv1D(_CopiedPlain, Conv1D):  # type: ignore[misc]  # untyped in transformers
    """The same for transformers' linear layer with a transposed weight."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute; see `scaled_product`."""
        return _computed(self, x, _transposed_linear, super().forward)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: TrainedLinear, Conv1D: TrainedConv1D}


def takes_scaled_products(module: nn.Module) -> bool:
    """Whether `module` is a plain linear layer with plain weights, so that its products can be scaled, or are."""
    if _NOTE not in module.__dict__ and not can_be_scaled(module):
        return False
    weights = [weight for weight in module._parameters.values() if weight is not None]
    return all(type(weight) is nn.Parameter and weight.dtype in _FLOATS for weight in weights) and len(weights) > 0


@contextmanager
def products_scaled(modules: Mapping[nn.Module, Note]) -> Iterator[None]:
    """Have these layers scale their float16 products in the block, and tell of the numbers in them.

    Before and after they are what they were: what is copied or stored between two blocks knows nothing of it.
    """
    before = {module: (type(module), module.__dict__.get(_NOTE)) for module in modules}
    try:
        for module, note in modules.items():
            module.__dict__[_NOTE] = note
            become(module, _CLASSES.get(type(module), type(module)))
        yield
    finally:
        for module, (module_class, note_before) in before.items():
            become(module, module_class)
            if note_before is None:
                module.__dict__.pop(_NOTE, None)
            else:  # another guard's, around this block
                module.__dict__[_NOTE] = note_before


def _computed(module: Any, x: Tensor, product: Product, plain: Callable[[Tensor], Tensor]) -> Tensor:
    kind = x.device.type
    is_half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    if not is_half or not x.numel() or x.dtype not in _FLOATS:
        return plain(x)
    return scaled_product(product, x, module.weight, module.bias, module.__dict__[_NOTE])


def _transposed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:  # Conv1D always has one
        return x @ weight
    product = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)  # as Conv1D computes
    return product.view(*x.shape[:-1], weight.shape[-1])
