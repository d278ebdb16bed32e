"""`running_in`: a whole model in another dtype than its weights are stored in, with no second copy of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .cast_products import cast_linear

_aten = torch.ops.aten


class running_in(TorchDispatchMode):  # noqa: N801  (a context, read as a verb: with running_in(torch.float32): ...)
    """Compute everything in `dtype` within the block that would be computed in `stored`: weights are cast as they are used.

    Where `compute_in` computes products and rounds them back, nothing is rounded back here: what a model in float16
    would be in float32 shows, whatever leaves float16's range. Slow, for measuring. A large matrix is cast in pieces.

    Args:
        dtype: What to compute in.
        stored: The dtype of the weights.
    """

    def __init__(self, dtype: torch.dtype, stored: torch.dtype = torch.float16) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.stored = stored

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operation."""
        kwargs = kwargs or {}
        if func is _aten.embedding.default:  # of a table only the rows that are looked up are cast
            return self._cast(func(*args, **kwargs))
        product = self._by_pieces(func, args)
        if product is not None:
            return product
        if func in _VIEWS:  # a transposed weight is still the weight
            return func(*args, **kwargs)
        written = args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None
        if written is not None and written.dtype == self.stored:
            return func(*args, **kwargs)  # a buffer of the model's own stays what it is
        return func(*self._cast(args), **self._cast(kwargs))

    def _by_pieces(self, func: Any, args: Any) -> Tensor | None:
        if func is _aten.linear.default and self._is_weight(args[1]):
            return cast_linear(args[0], args[1], args[2] if len(args) > 2 else None, self.dtype)
        if func is _aten.mm.default and self._is_weight(args[1]):
            return cast_linear(args[0], args[1].t(), None, self.dtype)
        if func is _aten.addmm.default and len(args) == 3 and self._is_weight(args[2]) and args[0].dim() == 1:
            return cast_linear(args[1], args[2].t(), args[0], self.dtype)
        return None

    def _is_weight(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.dtype == self.stored and tensor.dim() == 2

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.dtype) if value.dtype == self.stored else value
        if isinstance(value, torch.dtype):
            return self.dtype if value == self.stored else value
        if type(value) in (tuple, list):
            return type(value)(self._cast(one) for one in value)
        if type(value) is dict:
            return {name: self._cast(one) for name, one in value.items()}
        return value


_VIEWS = frozenset(
    {
        _aten.t.default, _aten.transpose.int, _aten.view.default, _aten.reshape.default, _aten.select.int,
        _aten.slice.Tensor, _aten.detach.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.permute.default,
        _aten.expand.default, _aten.alias.default, _aten.as_strided.default, _aten.split.Tensor, _aten.chunk.default,
        _aten.unbind.int, _aten.split_with_sizes.default, _aten.numpy_T.default,
    }
)  # fmt: skip
