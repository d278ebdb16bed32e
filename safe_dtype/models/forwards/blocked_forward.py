"""A module's own forward in the place of its class's: it multiplies in blocks, by codes or in 16 bit, or looks up there.

What is put into its `__dict__` goes again when its weight changes or its class does.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own name for it)
from torch import Tensor, nn

from ...kernels.row_product import MOST_ROWS, Weighed, has_code
from ...kernels.weights.coded_weight import CodedWeight
from ...kernels.weights.narrow_weight import NarrowWeight
from ..blocked_weight import BlockedWeight
from .module_forward import has_forward, put_on, take_off, value_of
from .plain_calls import is_bias, is_plain, is_watched, needs_gradient

logger = logging.getLogger(__name__)

_LINEAR, _EMBEDDING = nn.Linear.forward, nn.Embedding.forward
_LINEAR_FUNCTION, _EMBEDDING_FUNCTION = torch._C._nn.linear, F.embedding


def attach(module: nn.Linear | nn.Embedding, weight: BlockedWeight) -> None:
    """Have `module` multiply from blocks, or look up in them, as long as they are those of its weight."""
    put_on(module, weight, _linear_forward if isinstance(module, nn.Linear) else _embedding_forward)


def weight_of(module: nn.Module) -> BlockedWeight | None:
    """Return the blocks that `module` was given; None where it has none, or has let them go."""
    weight = value_of(module)
    return weight if isinstance(weight, BlockedWeight) else None


def has_rows(module: nn.Module) -> bool:
    """Whether `module` was given codes or 16-bit numbers that lie row by row, and still has them."""
    weight = weight_of(module)
    if weight is None:
        return False
    return isinstance(weight.blocks, NarrowWeight) or (
        isinstance(weight.blocks, CodedWeight) and not weight.blocks.by_torch
    )


def weighed_rows(module: nn.Module, x: Tensor) -> Weighed | None:
    """Return what the forward of `module` would multiply few rows by, code being compiled; None where it is another way."""
    if not has_forward(module, _linear_forward) or not has_rows(module) or x.numel() > MOST_ROWS * x.shape[-1]:
        return None
    blocked = _multiplied_by(module, x)
    if blocked is None or not has_code(blocked.blocks.tensor.dtype, x.dtype):
        return None
    scales = blocked.blocks.scales if isinstance(blocked.blocks, CodedWeight) else None
    return blocked.blocks.tensor, module._parameters["bias"], scales


def _linear_forward(module: nn.Linear, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
    """Multiply; from the plain weight where a graph is recorded, or where the weight has changed."""
    if torch.compiler.is_compiling() or is_watched():
        return type(module).forward(module, input)
    blocked = _multiplied_by(module, input)
    if blocked is not None:
        return blocked.multiply(input, module._parameters["bias"])
    return type(module).forward(module, input)


def _multiplied_by(module: nn.Module, x: Tensor) -> BlockedWeight | None:
    """Return the blocks or codes that `x` is multiplied by; None where that is the plain weight."""
    blocked = _fitting(module, nn.Linear)
    if blocked is None:
        return None
    parameters = module._parameters  # not `module.weight`, which takes a microsecond, for each of 200 calls a token
    weight, bias = parameters["weight"], parameters["bias"]
    multiplies = (
        F.linear is _LINEAR_FUNCTION
        and nn.Linear.forward is _LINEAR
        and _can_multiply(blocked, x, weight, bias)
        and _still_fits(module, weight, blocked)
    )
    return blocked if multiplies else None


def _embedding_forward(module: nn.Embedding, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
    """Look up; in the plain table where a graph is recorded, or where the table has changed."""
    if torch.compiler.is_compiling() or is_watched():
        return type(module).forward(module, input)
    blocked = _fitting(module, nn.Embedding)
    if blocked is not None:
        weight = module._parameters["weight"]
        if (
            F.embedding is _EMBEDDING_FUNCTION
            and nn.Embedding.forward is _EMBEDDING
            and module.max_norm is None  # with it, a lookup writes into the table
            and is_plain(input)
            and input.dtype in (torch.int64, torch.int32)
            and not needs_gradient(weight)
            and not isinstance(blocked.blocks, CodedWeight)
            and _still_fits(module, weight, blocked)
        ):
            return blocked.blocks.rows(input)
    return type(module).forward(module, input)


def _fitting(module: nn.Module, plain: type[nn.Module]) -> BlockedWeight | None:
    """Return the blocks of a module that is still one of torch's, with its parameters in their places.

    Otherwise they are of no use any more, as in training, and let go for their memory: what prunes, reparametrizes or
    shards a module has its weight elsewhere. Training without gradients may be a look at how it goes, or a checkpoint
    whose layers are computed again with them: both want the plain weight, and nothing is let go.
    """
    own = module.__dict__
    blocked = weight_of(module)
    parameters = module._parameters
    if (
        blocked is None
        or type(module) is not plain
        or "weight" not in parameters
        or "weight" in own
        or (plain is nn.Linear and ("bias" not in parameters or "bias" in own))
        or (module.training and torch.is_grad_enabled())
    ):
        take_off(module)
        return None
    return None if module.training else blocked


def _can_multiply(blocked: BlockedWeight, x: Tensor, weight: Any, bias: Tensor | None) -> bool:
    """Whether `x` is what blocks are for; what plain torch would refuse, it shall refuse in its own words."""
    dtype = blocked.origin.dtype
    return (
        is_plain(x)
        and x.dtype is dtype
        and (bias is None or is_bias(bias, dtype, blocked.blocks.out_features))
        and x.dim() > 0
        and x.shape[-1] == blocked.in_features
        and not torch.is_autocast_enabled("cpu")
        and not needs_gradient(x, weight, bias)
    )


def _still_fits(module: nn.Module, weight: Any, blocked: BlockedWeight) -> bool:
    """Whether the blocks are those of the module's weight; otherwise they are let go, for their memory."""
    if blocked.fits(weight):
        return True
    take_off(module)
    logger.info("a weight of shape %s has changed: it is multiplied as it is", tuple(blocked.origin.shape))
    return False
