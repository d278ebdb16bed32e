"""`compute_in`: heavy operations in another dtype than the tensors are stored in, on any device, float32 too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UnknownDtypeError
from ..facts import COMPUTE, Dtype, dtype_named
from .cast_products import cast_bmm, cast_grouped_mm, cast_linear

logger = logging.getLogger(__name__)

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_EXPERT_PRODUCTS = tuple(
    function
    for owner, name in ((torch, "_grouped_mm"), (F, "grouped_mm"))
    if (function := getattr(owner, name, None)) is not None
)

# Every function through which torch is asked for a heavy operation, by family.
_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "linear": (F.linear, F.bilinear),
    "matmul": (
        torch.matmul, torch.mm, torch.mv, torch.addmm, torch.addmv, torch.einsum, torch.tensordot, torch.linalg.matmul,
        Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.mv, Tensor.addmm, Tensor.addmv,
    ),
    "bmm": (torch.bmm, torch.baddbmm, torch.addbmm, Tensor.bmm, Tensor.baddbmm, Tensor.addbmm),
    "conv": (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    "attention": (F.scaled_dot_product_attention, F.multi_head_attention_forward),
    "experts": _EXPERT_PRODUCTS,
}  # fmt: skip
FAMILIES = tuple(_FUNCTIONS)
FAMILY_OF = {function: family for family, functions in _FUNCTIONS.items() for function in functions}

_MATMUL = (torch.matmul, torch.linalg.matmul, Tensor.matmul, Tensor.__matmul__)
_MM = (torch.mm, Tensor.mm)
_PLUS_PRODUCT = (torch.addmm, Tensor.addmm)
# What the product is added to comes first.
_PRODUCT_SECOND = (
    *_PLUS_PRODUCT,
    torch.addmv,
    torch.baddbmm,
    torch.addbmm,
    Tensor.addmv,
    Tensor.baddbmm,
    Tensor.addbmm,
)
_BATCHED = (torch.bmm, Tensor.bmm)
# By what name the first operand may be given.
_OPERAND_NAMES = ("input", "query", "mat_a", "self", "a")
_PRODUCT_NAMES = ("mat1", "mat", "batch1")
_MASK_NAMES = ("attn_mask", "key_padding_mask")


class _Decided(threading.local):
    """Whether an inner block of this thread has decided on the operation that is being computed."""

    yes = False


_decided = _Decided()


@contextmanager
def in_storage_dtype() -> Iterator[None]:
    """Compute everything in the dtype it is stored in, whatever blocks stand around: they step aside in this thread."""
    before = _decided.yes
    _decided.yes = True
    try:
        yield
    finally:
        _decided.yes = before


class compute_in(TorchFunctionMode):  # noqa: N801  (a context, read as a verb: with compute_in("float32"): ...)
    """Compute heavy operations in `dtype` within the block; results come back in the dtype of their first operand.

    What `torch.autocast` is not for: it cannot compute in float32, and casts whole weights. Operands are cast to
    `dtype`, products are accumulated as torch accumulates in it (float32 on a CPU; on a GPU float32 too, unless
    reduced-precision reductions are switched on), and the result is rounded once. A weight of more than 2 million
    elements is cast in pieces, unless a gradient is asked for. Everything in between stays in the storage dtype.

        with compute_in("float32"):
            model(input_ids)  # bf16 weights, bf16 activations, products at float32's speed

    Nests: the inner block decides on the families it names, and so does a `torch.autocast` inside. Under
    `torch.compile` and `torch.export` it steps aside, and what is compiled computes in the storage dtype. Only casts
    are added, so gradients flow as ever. Gradient checkpointing recomputes outside of every block: give it the blocks
    as its `context_fn=lambda: (compute_in(dtype), compute_in(dtype))`.

    Operands of different dtypes, which plain torch refuses, are multiplied, and the first one's dtype is the result's.
    Left alone: float64, integers, tensor subclasses (quantized, distributed), nested tensors, operations with `out=` or
    in place, and, where precision would be lost, products that add nothing up, as the angles of rotary embeddings.

    Args:
        dtype: What to compute in: float32, bfloat16 or float16, as our `Dtype`, torch's, or a name.
        ops: The op families, of "linear", "matmul", "bmm", "conv", "attention", "experts".
        when: Asked before each operation, with its family and number of rows (of the first operand, all but its last
            dimension); False leaves the operation as it is.

    Raises:
        UnknownDtypeError: If `dtype` names no dtype that models compute in.
        ValueError: If `ops` names a family that is not there.
    """

    def __init__(
        self, dtype: Dtype | torch.dtype | str, *, ops: Collection[str] = FAMILIES,
        when: Callable[[str, int], bool] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        named = dtype_named(str(dtype))
        if named not in COMPUTE:
            raise UnknownDtypeError(str(dtype), tuple(one.name for one in COMPUTE))
        if unknown := [one for one in ops if one not in FAMILIES]:
            raise ValueError(f"no op family is called {unknown[0]!r}; there are {', '.join(FAMILIES)}")
        self.dtype: torch.dtype = getattr(torch, named.name)
        self._families = frozenset(ops)
        self._when = when
        self._autocasts_around: list[int] = []

    def __enter__(self) -> compute_in:
        self._autocasts_around.append(_autocast_depth())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._autocasts_around.pop()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute one operation."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or _decided.yes or FAMILY_OF.get(func) not in self._families:
            return func(*args, **kwargs)
        _decided.yes = True
        try:
            return self._decide(func, args, kwargs)
        finally:
            _decided.yes = False

    def _decide(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        first = _first_operand(func, args, kwargs)
        if first is None or not self._applies(func, first, args, kwargs):
            return func(*args, **kwargs)
        if not _autocasts(first.device.type):
            return self._computed(func, first, args, kwargs)
        with torch.autocast(first.device.type, enabled=False):
            return self._computed(func, first, args, kwargs)

    def _applies(
        self, func: Callable[..., Any], first: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bool:
        autocasts = _autocasts(first.device.type)
        if kwargs.get("out") is not None or (autocasts and _autocast_depth() > self._autocasts_around[-1]):
            return False
        tensors = _tensors((args, kwargs))
        if any(type(one) not in (Tensor, nn.Parameter) or one.is_nested for one in tensors):
            return False
        if (
            not autocasts
            and self._is_plain(func)
            and all(one.dtype == self.dtype for one in tensors if one.dtype in _FLOATS)
        ):
            return False
        if self._narrows(first) and _adds_nothing_up(func, first):
            return False
        width = first.shape[-1] if first.dim() else 1
        return self._when is None or self._when(FAMILY_OF[func], first.numel() // max(1, width))

    def _is_plain(self, _func: Callable[..., Any]) -> bool:
        """Whether an operation on operands in `dtype` is torch's own."""
        return True

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return `x @ weight.T + bias`, in `dtype` or rounded already."""
        return cast_linear(x, weight, bias, self.dtype)

    def _narrows(self, tensor: Tensor) -> bool:
        return torch.finfo(self.dtype).eps > torch.finfo(tensor.dtype).eps

    def _computed(
        self, func: Callable[..., Any], first: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        result = None
        if all(one.dtype in _FLOATS for one in _tensors((args, kwargs))) or func in _EXPERT_PRODUCTS:
            result = self._by_pieces(func, args, kwargs)
        if result is None:
            result = func(*self._cast(self._masked(func, args)), **self._cast(self._named_masks(kwargs)))
        return _back(result, self.dtype, first.dtype)

    def _by_pieces(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
        """Compute a product whose second operand may be large; None where `func` is no such product."""
        if func is F.linear:
            x, weight, bias = _arguments(("input", "weight", "bias"), args, kwargs)
            return self._product(x, weight, bias)
        if func in _EXPERT_PRODUCTS and _is_by_expert(args, kwargs):
            return cast_grouped_mm(args[0], args[1], kwargs["offs"], self.dtype)
        shape = () if kwargs else tuple(one.dim() for one in args if isinstance(one, Tensor))
        if (func in _MM and shape == (2, 2)) or (func in _MATMUL and shape[1:] == (2,) and shape[0] >= 2):
            return self._product(args[0], args[1].t(), None)
        if func in _PLUS_PRODUCT and shape == (1, 2, 2):
            return self._product(args[1], args[2].t(), args[0])
        if func in _BATCHED and shape == (3, 3):
            return cast_bmm(args[0], args[1], self.dtype)
        return None

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.dtype) if value.dtype in _FLOATS else value
        if type(value) in (tuple, list):
            return type(value)([self._cast(one) for one in value])
        if type(value) is dict:
            return {name: self._cast(one) for name, one in value.items()}
        return value

    def _masked(self, func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        if func is not F.scaled_dot_product_attention or len(args) < 4:
            return args
        return (*args[:3], self._in_range(args[3]), *args[4:])

    def _named_masks(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._in_range(one) if name in _MASK_NAMES else one for name, one in kwargs.items()}

    def _in_range(self, mask: Any) -> Any:
        """Cast a mask whose finite numbers stay finite: a row of nothing but -Inf would become NaN."""
        end = torch.finfo(self.dtype).min
        if not isinstance(mask, Tensor) or mask.dtype not in _FLOATS or torch.finfo(mask.dtype).min >= end:
            return mask
        cast = mask.to(self.dtype)
        return cast.masked_fill(cast.isinf() & mask.isfinite(), end)


def _arguments(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    by_name = dict(zip(names, args, strict=False)) | dict(kwargs)
    return [by_name.get(name) for name in names]


def _first_operand(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first floating operand of the product, by position or by name."""
    names, skipped = (_PRODUCT_NAMES, 1) if func in _PRODUCT_SECOND else (_OPERAND_NAMES, 0)
    named = [kwargs[name] for name in names if name in kwargs]
    return next((one for one in _tensors((args[skipped:], named)) if one.dtype in _FLOATS), None)


def _adds_nothing_up(func: Callable[..., Any], first: Tensor) -> bool:
    """Whether each result is one product: the angles of rotary embeddings are computed like that, as matrices."""
    if FAMILY_OF[func] not in ("matmul", "bmm"):
        return False
    return first.dim() < 2 if func is torch.einsum else first.dim() > 0 and first.shape[-1] == 1


def _is_by_expert(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return len(args) == 2 and set(kwargs) == {"offs"} and args[0].dim() == 2 and args[1].dim() == 3


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [one for part in value for one in _tensors(part)]


def _back(result: Any, computed: torch.dtype, storage: torch.dtype) -> Any:
    if isinstance(result, Tensor):
        return result.to(storage) if result.dtype == computed else result
    if isinstance(result, tuple):
        return tuple(_back(one, computed, storage) for one in result)
    return result


def _autocasts(device_type: str) -> bool:
    # Of a type that it knows no autocast for, "meta", say, torch refuses to tell.
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _autocast_depth() -> int:
    """Return how many blocks of `torch.autocast` this thread is in, which torch tells only where one begins."""
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth
