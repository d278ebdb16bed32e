"""A module's own forward in the place of its class's: it multiplies, or looks up, in blocks.

The module stays of torch's own class, `nn.Linear` or `nn.Embedding`, since libraries ask for exactly these (quantization
in torch, for one). What is put into its `__dict__` goes again when its weight changes or its class does, and nobody finds it
who goes through the `__dict__`: copies, also those that are made by hand, are plain.
"""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ..numerics.block_product import product
from ..numerics.compute_in import compute_in
from ..numerics.followed import is_followed
from .blocked_weight import BlockedWeight

logger = logging.getLogger(__name__)

_WEIGHT = "_safe_dtype_blocks"
_FORWARD = "forward"
_LINEAR, _EMBEDDING = nn.Linear.forward, nn.Embedding.forward
_LINEAR_FUNCTION, _EMBEDDING_FUNCTION = torch._C._nn.linear, F.embedding


class _Bound:
    """A function bound to a module, weakly, so that the module dies with its last user; in the place of its forward."""

    __slots__ = ("_function", "_module", "_own")

    def __init__(self, function: Callable[..., Any], module: nn.Module, own: _Attributes) -> None:
        self._function, self._module, self._own = function, weakref.ref(module), weakref.ref(own)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        if module is None or module.__dict__ is not self._own():
            module = self._bound_anew(module)
        return self._function(module, *args, **kwargs)

    def _bound_anew(self, module: nn.Module | None) -> nn.Module:
        """Return the module that the `__dict__` with this method is of now: somebody has given it to another one."""
        own = self._own()
        owners = gc.get_referrers(own) if own is not None else ()
        owner = next((one for one in owners if isinstance(one, nn.Module) and one.__dict__ is own), module)
        if owner is None:
            raise ReferenceError("the module of this method is gone: keep it as long as its method")
        self._module = weakref.ref(owner)
        return owner

    # What asks a method for its module, its name or its signature finds those of the class's.

    @property
    def __self__(self) -> nn.Module | None:
        return self._module()

    @property
    def __name__(self) -> str:
        return _FORWARD

    @property
    def __func__(self) -> Any:
        return getattr(type(self._module()), _FORWARD)

    @property
    def __code__(self) -> Any:  # torch.export names the file
        return self.__func__.__code__

    @property
    def __wrapped__(self) -> Any:
        return self.of_class()

    @property
    def __globals__(self) -> Any:
        # Where torch.jit.script begins.
        text = "a module with its weight in blocks is not compiled from its source: script a copy.deepcopy of it"
        raise AttributeError(text)

    def of_class(self) -> Any:
        """Return the module's method that it stands for; None where the module is gone."""
        module = self._module()
        return None if module is None else MethodType(getattr(type(module), _FORWARD), module)


class _Attributes(dict[str, Any]):
    """The `__dict__` of a module, in which what was attached to it is found by its name only.

    Python looks attributes up in the dict itself. What goes through it (`update`, `dict`, `**`, copies and pickles) asks
    its methods, and finds the others, in a plain dict where it makes another.
    """

    __slots__ = ("__weakref__",)

    def copy(self) -> dict[str, Any]:
        """Return what would be in it if nothing had been attached."""
        others = {name: value for name, value in super().items() if not _is_attached(name, value)}
        # accelerate keeps the forward that its hooks are around.
        return {name: value.of_class() if type(value) is _Bound else value for name, value in others.items()}

    __copy__ = copy

    def __getitem__(self, name: str) -> Any:
        # torch.compile asks here for what to guard: of the class's method it is the function, one for all modules, while
        # what is no method is known by its identity, and each layer of a model compiled anew.
        value = super().__getitem__(name)
        return value.of_class() if type(value) is _Bound else value

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def keys(self) -> Any:
        """Return the names."""
        return self.copy().keys()

    def values(self) -> Any:
        """Return the values."""
        return self.copy().values()

    def items(self) -> Any:
        """Return the others by name."""
        return self.copy().items()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.copy(), memo)

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return dict, (self.copy(),)


def attach(module: nn.Linear | nn.Embedding, weight: BlockedWeight) -> None:
    """Have `module` multiply from blocks, or look up in them, as long as they are those of its weight."""
    own = module.__dict__
    if type(own) is not _Attributes:
        own = _Attributes(own)
        object.__setattr__(module, "__dict__", own)
    own[_WEIGHT] = weight
    own[_FORWARD] = _Bound(_linear_forward if isinstance(module, nn.Linear) else _embedding_forward, module, own)


def detach(module: nn.Module) -> bool:
    """Undo `attach`; return whether there was anything to undo."""
    own = module.__dict__
    is_ours = type(own.get(_FORWARD)) is _Bound
    if is_ours:
        own.pop(_FORWARD, None)
    # A forward of ours that somebody else has wrapped stays inside of theirs, and calls that of the class.
    return own.pop(_WEIGHT, None) is not None or is_ours


def weight_of(module: nn.Module) -> BlockedWeight | None:
    """Return the blocks that `module` was given; None where it has none, or has let them go."""
    weight = module.__dict__.get(_WEIGHT)
    return weight if isinstance(weight, BlockedWeight) else None


def set_aside(module: nn.Module) -> Callable[[], None]:
    """Undo `attach`, and return what does it again."""
    weight = weight_of(module)
    detach(module)

    def attach_again() -> None:
        if weight is not None and isinstance(module, (nn.Linear, nn.Embedding)):
            attach(module, weight)

    return attach_again


def _linear_forward(module: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
    """Multiply; from the plain weight where a graph is recorded, or where the weight has changed."""
    if torch.compiler.is_compiling() or _is_watched():
        return type(module).forward(module, input)
    blocked = _fitting(module, nn.Linear)
    if blocked is not None:
        parameters = (
            module._parameters
        )  # not `module.weight`, which takes a microsecond, for each of 200 calls a token
        weight, bias = parameters["weight"], parameters["bias"]
        if (
            F.linear is _LINEAR_FUNCTION
            and nn.Linear.forward is _LINEAR
            and _can_multiply(blocked, input, weight, bias)
            and _still_fits(module, weight, blocked)
        ):
            return product(input, blocked.blocks, bias, wide=blocked.wide)
    return type(module).forward(module, input)


def _embedding_forward(module: nn.Embedding, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
    """Look up; in the plain table where a graph is recorded, or where the table has changed."""
    if torch.compiler.is_compiling() or _is_watched():
        return type(module).forward(module, input)
    blocked = _fitting(module, nn.Embedding)
    if blocked is not None:
        weight = module._parameters["weight"]
        if (
            F.embedding is _EMBEDDING_FUNCTION
            and nn.Embedding.forward is _EMBEDDING
            and module.max_norm is None  # with it, a lookup writes into the table
            and _is_plain(input)
            and input.dtype in (torch.int64, torch.int32)
            and not _needs_gradient(weight)
            and _still_fits(module, weight, blocked)
        ):
            return blocked.blocks.rows(input)
    return type(module).forward(module, input)


def _fitting(module: nn.Module, plain: type[nn.Module]) -> BlockedWeight | None:
    """Return the blocks of a module that is still one of torch's, with its parameters in their places.

    Otherwise they are of no use any more, as in training, and let go for their memory: what prunes, reparametrizes or
    shards a module has its weight elsewhere.
    """
    own = module.__dict__
    blocked: BlockedWeight | None = own.get(_WEIGHT)
    parameters = module._parameters
    if (
        blocked is None
        or type(module) is not plain
        or "weight" not in parameters
        or "weight" in own
        or (plain is nn.Linear and ("bias" not in parameters or "bias" in own))
        or (module.training and torch.is_grad_enabled())
    ):
        detach(module)
        return None
    return blocked


def _can_multiply(blocked: BlockedWeight, x: Tensor, weight: Any, bias: Tensor | None) -> bool:
    """Whether `x` is what blocks are for; what plain torch would refuse, it shall refuse in its own words."""
    dtype = blocked.origin.dtype
    return (
        _is_plain(x)
        and x.dtype is dtype
        and (bias is None or _is_bias(bias, blocked))
        and x.dim() > 0
        and x.shape[-1] == blocked.blocks.tensor.shape[1]
        and not torch.is_autocast_enabled("cpu")
        and not _needs_gradient(x, weight, bias)
    )


def _is_bias(bias: Tensor, blocked: BlockedWeight) -> bool:
    return (
        type(bias) is nn.Parameter
        and bias.is_cpu
        and bias.dtype is blocked.origin.dtype
        and bias.shape == (blocked.blocks.out_features,)
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers in it to compute with, of this process."""
    return type(tensor) is Tensor and tensor.is_cpu and tensor.layout is torch.strided


def _is_watched() -> bool:
    """Whether somebody looks on who expects the calls of a plain module: a trace, a transform or a mode of torch."""
    return bool(
        torch._C._is_tracing()
        or is_followed()
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and not _only_known_modes())
    )


def _only_known_modes() -> bool:
    # In these blocks keep to the dtype and the device of their weight.
    return all(isinstance(mode, (compute_in, DeviceContext)) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _still_fits(module: nn.Module, weight: Any, blocked: BlockedWeight) -> bool:
    """Whether the blocks are those of the module's weight; otherwise they are let go, for their memory."""
    if blocked.fits(weight):
        return True
    detach(module)
    logger.info("a weight of shape %s has changed: it is multiplied as it is", tuple(blocked.origin.shape))
    return False


def _is_attached(name: str, value: Any) -> bool:
    return name == _WEIGHT or (name == _FORWARD and type(value) is _Bound)
