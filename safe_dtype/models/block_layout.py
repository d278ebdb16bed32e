"""Give the linear modules of a model weights in blocks, where that costs no memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..numerics.block_product import Blocks, can_lay_out
from ..numerics.pages import file_mappings, give_back, in_files
from .blocked_weight import BlockedWeight
from .forwards.blocked_forward import attach, weight_of
from .forwards.module_forward import take_off

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """What `lay_out` did."""

    modules: int  # linear modules that multiply from blocks now
    bytes: int  # in blocks
    given_back: int  # bytes of the originals that need no memory any more


def lay_out(model: nn.Module, *, rounded: torch.dtype | None = None, wide: torch.dtype = torch.float32) -> Layout:
    """Lay the weights of the linear modules of `model` out in blocks, and give the memory of the originals back.

    Only weights that are views of their files are taken, since of others there would be two copies. Modules and
    parameters stay what they are, of their own classes; a weight that is written to later, in any way and be it one
    number of it, is multiplied from the parameter again. In training the plain weights are multiplied, and the blocks
    let go. Compiled, exported and traced graphs hold the plain weights; `torch.jit.script` wants a copy.

    Args:
        model: Changed in place.
        rounded: Round weights in float32 to this dtype; None leaves float32 as it is. Activations stay in float32.
        wide: What many rows are computed in.
    """
    mappings = file_mappings()
    made: dict[_Place, BlockedWeight] = {}
    count = given_back = 0
    # The largest first, for which both copies lie in memory at the same time.
    for module in sorted(_linear_modules(model), key=lambda one: -one.weight.numel()):
        weight, place = module.weight, _place(module.weight)
        if place not in made:
            dtype = rounded if weight.dtype == torch.float32 else weight.dtype
            if dtype is None or not list(in_files([weight.data], mappings)):
                continue
            blocked = BlockedWeight.of(weight, dtype, wide)
            if not blocked.fits(weight):  # written to meanwhile
                continue
            made[place] = blocked
            given_back += give_back(weight.data, mappings)
        attach(module, made[place])
        count += 1
    for embedding in _embeddings(model):
        shared = made.get(_place(embedding.weight))
        if shared and shared.blocks.tensor.dtype == embedding.weight.dtype:  # a lookup keeps its bits
            attach(embedding, shared)
    done = Layout(count, sum(blocked.blocks.tensor.nbytes for blocked in made.values()), given_back)
    logger.debug("%s: %s", type(model).__name__, done)
    return done


def take_back(model: nn.Module) -> int:
    """Undo `lay_out` and `compile_products`; return how many modules were changed back."""
    return sum(take_off(module) for module in model.modules())


def blocks_of(module: nn.Module) -> Blocks | None:
    """Return the blocks that `module` multiplies from; None where it is plain, or its weight has changed."""
    blocked = weight_of(module)
    if blocked is None or not isinstance(module, nn.Linear) or not blocked.fits(module._parameters.get("weight")):
        return None
    return blocked.blocks


_Place: TypeAlias = tuple[int, torch.Size]


def _place(weight: Tensor) -> _Place:
    return weight.data_ptr(), weight.shape


def _linear_modules(model: nn.Module) -> Iterator[nn.Linear]:
    for module in model.modules():
        # A subclass, and a module whose forward an offloading hook has replaced, compute in their own way.
        if type(module) is not nn.Linear or "forward" in module.__dict__ or type(module.weight) is not nn.Parameter:
            continue
        if can_lay_out(module.weight) and not module.weight.is_inference():
            yield module


def _embeddings(model: nn.Module) -> Iterator[nn.Embedding]:
    for module in model.modules():
        # With max_norm a lookup writes into the table.
        if type(module) is nn.Embedding and "forward" not in module.__dict__ and module.max_norm is None:
            yield module
