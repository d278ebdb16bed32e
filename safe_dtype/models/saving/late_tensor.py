"""Tensors that are made where their numbers are read: a state dict of them takes no memory until its parts are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _Memory:
    """What asks for the storage of a tensor wants to know of one that is not made yet: is it another's, how large is it."""

    address: int
    bytes: int

    def data_ptr(self) -> int:
        """Return a number that no other storage has."""
        return self.address

    def nbytes(self) -> int:
        """Return how large it will be."""
        return self.bytes

    size = nbytes


class LateTensor(Tensor):
    """A contiguous tensor on the CPU, of a known shape and dtype, that is made anew whenever its numbers are read.

    It is kept only where its address is asked for, as those who write files do, for as long as this object lives. Parts of
    one that is only another tensor in another dtype are made late, too: no more than the part is converted.

    Args:
        make: Returns the numbers, on any device and in any dtype.
        like: A tensor of the same shape.
        dtype: Of the tensor that is made.
        source: What `make` only casts; None where it does more than that.
    """

    _make: Callable[[], Tensor]
    _source: Tensor | None
    numbers: Tensor | None  # once it was made to stay

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch has it

    @staticmethod
    def __new__(
        cls: type[LateTensor], make: Callable[[], Tensor], like: Tensor, dtype: torch.dtype,
        source: Tensor | None = None,
    ) -> LateTensor:  # fmt: skip
        """Return one that is not made yet."""
        late: LateTensor = torch.Tensor._make_wrapper_subclass(
            cls, like.shape, dtype=dtype, device=torch.device("cpu")
        )
        late._make, late._source, late.numbers = make, source, None
        return late

    @staticmethod
    def cast(source: Tensor, dtype: torch.dtype) -> LateTensor:
        """Return `source` in another dtype, cast when it is read."""
        return LateTensor(lambda: source, source, dtype, source)

    def made(self) -> Tensor:
        """Return the numbers, in memory of their own where they are cast."""
        if self.numbers is not None:
            return self.numbers
        return self._make().detach().to(self.dtype).cpu().contiguous()

    def untyped_storage(self) -> Any:
        """Return an address and a size: nothing is made for it."""
        return _Memory(id(self), self.nbytes)

    def data_ptr(self) -> int:
        """Return where the numbers are: they are made, and stay for as long as this object."""
        return self.keep().data_ptr()

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """Return the same tensor, made late as well: what is kept of it goes with it, and not with all of a state dict."""
        if memory_format != torch.contiguous_format or self.numbers is not None:
            return self.made().contiguous(memory_format=memory_format)
        return LateTensor(self._make, self, self.dtype, self._source)

    def numpy(self, *, force: bool = False) -> Any:
        """Return an array of the numbers."""
        return self.made().numpy(force=force)

    def tolist(self) -> Any:
        """Return the numbers."""
        return self.made().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle the numbers, as those of a plain tensor."""
        plain: Any = self.made()
        return plain.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> Tensor:
        """Return a plain tensor."""
        return self.made().clone()

    def __repr__(self) -> str:  # type: ignore[override]  # that of Tensor has an argument of its own
        return f"LateTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # no stub
        """Compute with the numbers; of a part of them nothing yet."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func.is_view and isinstance(first, LateTensor) and first._source is not None and first.numbers is None:
            dtype = first.dtype
            return tree_map(
                lambda view: LateTensor.cast(view, dtype) if isinstance(view, Tensor) else view,
                func(first._source, *args[1:], **kwargs),
            )
        # What is written into has to be there afterwards.
        ready = LateTensor.keep if func._schema.is_mutable else LateTensor.made
        args, kwargs = tree_map(lambda value: ready(value) if isinstance(value, LateTensor) else value, (args, kwargs))
        return func(*args, **kwargs)

    def keep(self) -> Tensor:
        """Return the numbers, which stay from now on."""
        if self.numbers is None:
            self.numbers = self.made()
        return self.numbers


def made(state: Mapping[str, Value]) -> dict[str, Value]:
    """Return `state` with every late tensor in it made, once for all of its names."""
    ready: dict[int, Any] = {}
    for value in state.values():
        if isinstance(value, LateTensor) and id(value) not in ready:
            ready[id(value)] = value.made()
    return {name: ready.get(id(value), value) for name, value in state.items()}
