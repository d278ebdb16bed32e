"""Which tensors a model computes from its weights alone: no input takes them beyond a bound that is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

_aten = torch.ops.aten
_PICKED = (_aten.embedding.default,)
_PRODUCTS = (_aten.mul.Tensor, _aten.mul.Scalar)
_SUMS = (_aten.add.Tensor,)
_JOINED = (_aten.cat.default, _aten.stack.default)
_IN_ANOTHER_FORM = frozenset(
    {
        _aten._to_copy.default, _aten.to.dtype, _aten.to.device, _aten.to.other, _aten.to.dtype_layout,
        _aten.clone.default, _aten.contiguous.default, _aten.dropout.default, _aten.detach.default, _aten.alias.default,
        _aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default,
        _aten.unsqueeze.default, _aten.squeeze.dim, _aten.slice.Tensor, _aten.select.int, _aten.transpose.int,
        _aten.permute.default, _aten.flatten.using_ints, _aten.repeat.default, _aten.index.Tensor,
    }
)  # fmt: skip

_Bound = Callable[[], float]


class KnownBounds:
    """Follows what becomes of a model's weights, operation by operation.

    An embedding returns rows of its weight, whatever the tokens. So its largest |number| bounds what it returns, and so on
    through casts, other shapes, products with numbers and with weights, sums (of an embedding of positions, say).
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {id(one) for one in (*model.parameters(), *model.buffers())}
        self._largest: dict[int, float] = {}
        self._bounds: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note what an operation returned."""
        if isinstance(result, Tensor) and result.is_floating_point() and (bound := self._after(func, args, kwargs)):
            self._bounds[result] = bound

    def of(self, tensor: Tensor) -> float | None:
        """Return the largest |number| that `tensor` can hold, whatever the input; None where that depends on it."""
        bound = self._bound(tensor)
        return None if bound is None else bound()

    def _after(self, func: Any, args: Any, kwargs: Any) -> _Bound | None:
        if func in _PICKED or func in _IN_ANOTHER_FORM:
            return self._bound(args[0])
        if func in _JOINED:
            return _combined([self._bound(one) for one in args[0]], max)
        if func in _PRODUCTS:
            return _combined([self._bound(one) for one in args[:2]], _product)
        if func in _SUMS and not kwargs:
            return _combined([self._bound(one) for one in args[:2]], sum)
        return None

    def _bound(self, value: Any) -> _Bound | None:
        if isinstance(value, int | float):
            size = abs(float(value))
            return lambda: size
        if not isinstance(value, Tensor):
            return None
        if id(value) in self._weights:
            return lambda: self._of_weight(value)
        bound: _Bound | None = self._bounds.get(value)  # type: ignore[no-untyped-call]
        return bound

    def _of_weight(self, weight: Tensor) -> float:
        if id(weight) not in self._largest:
            self._largest[id(weight)] = float(weight.detach().abs().amax()) if weight.numel() else 0.0
        return self._largest[id(weight)]


def _combined(bounds: list[_Bound | None], combine: Callable[[list[float]], float]) -> _Bound | None:
    known = [bound for bound in bounds if bound is not None]
    return (lambda: combine([bound() for bound in known])) if known and len(known) == len(bounds) else None


def _product(factors: list[float]) -> float:
    return factors[0] * factors[1]
