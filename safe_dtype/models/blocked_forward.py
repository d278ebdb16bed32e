"""A module's own forward in the place of its class's: it multiplies, or looks up, in blocks.

The module stays of torch's own class, `nn.Linear` or `nn.Embedding`, since libraries ask for exactly these (quantization
in torch, for one). What is put into its `__dict__` goes again when its weight changes, when its class does, and in copies.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
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
_NAMES = ("forward", "__reduce_ex__", "_replicate_for_data_parallel")
_LINEAR, _EMBEDDING = nn.Linear.forward, nn.Embedding.forward
_LINEAR_FUNCTION, _EMBEDDING_FUNCTION = torch._C._nn.linear, F.embedding


class _Bound:
    """A function bound to a module, weakly, so that the module dies with its last user; in place of a method's name."""

    __slots__ = ("_function", "_module", "_name")

    def __init__(self, function: Callable[..., Any], module: nn.Module, name: str) -> None:
        self._function, self._module, self._name = function, weakref.ref(module), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        if module is None:
            raise ReferenceError("the module of this method is gone: keep it as long as its method")
        return self._function(module, *args, **kwargs)

    # What asks a method for its module, its name or its signature finds those of the class's.

    @property
    def __self__(self) -> nn.Module | None:
        return self._module()

    @property
    def __name__(self) -> str:
        return self._name

    @property
    def __func__(self) -> Any:
        return getattr(type(self._module()), self._name)

    @property
    def __wrapped__(self) -> Any:
        module = self._module()
        return None if module is None else self.method_of(module)

    @property
    def __globals__(self) -> Any:
        # Where torch.jit.script begins.
        text = "a module with its weight in blocks is not compiled from its source: script a copy.deepcopy of it"
        raise AttributeError(text)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Bound:
        # Some copy a module's `__dict__` without asking the module, torch.nn.utils.parametrize for one.
        module: Any = self._module()
        return _Bound(self._function, memo.get(id(module), module), self._name)

    def method_of(self, module: nn.Module) -> Any:
        """Return the method of the module's class that it stands for."""
        return MethodType(getattr(type(module), self._name), module)


def attach(module: nn.Linear | nn.Embedding, weight: BlockedWeight) -> None:
    """Have `module` multiply from blocks, or look up in them, as long as they are those of its weight."""
    forward = _linear_forward if isinstance(module, nn.Linear) else _embedding_forward
    module.__dict__[_WEIGHT] = weight
    for name, function in zip(_NAMES, (forward, _reduced, _replicated), strict=True):
        module.__dict__[name] = _Bound(function, module, name)


def detach(module: nn.Module) -> bool:
    """Undo `attach`; return whether there was anything to undo."""
    own = module.__dict__
    ours = [name for name in _NAMES if type(own.get(name)) is _Bound]
    for name in ours:
        own.pop(name, None)
    # A forward of ours that somebody else has wrapped stays inside of theirs, and calls that of the class.
    return own.pop(_WEIGHT, None) is not None or bool(ours)


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


def _reduced(module: nn.Module, protocol: Any) -> Any:
    """Reduce for copies and pickles as the module's class says, without what was attached."""
    reduced = type(module).__reduce_ex__(module, protocol)
    if not isinstance(reduced, tuple):
        return reduced
    return tuple(_without_ours(part, module) if isinstance(part, dict) else part for part in reduced)


def _replicated(module: nn.Module) -> Any:
    """Return what `nn.DataParallel` asks for: a module with a copy of the `__dict__`, and other weights."""
    replica = type(module)._replicate_for_data_parallel(module)  # type: ignore[no-untyped-call]
    replica.__dict__ = _without_ours(replica.__dict__, replica)
    return replica


def _without_ours(attributes: dict[str, Any], module: nn.Module) -> dict[str, Any]:
    """Return what `module` would have in its `__dict__` if nothing had been attached."""
    others = {name: value for name, value in attributes.items() if name != _WEIGHT}
    for name, value in attributes.items():
        if type(value) is _Bound:
            del others[name]
            if name not in _NAMES:  # where accelerate keeps the forward that its hooks are around
                others[name] = value.method_of(module)
    return others
