"""Give linear modules weights in another layout, where that costs no memory: in blocks, as codes, or in 16 bit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..facts import Dtype, codes_of_head
from ..kernels.weights.coded_weight import CodedWeight, can_be_coded
from ..kernels.weights.narrow_weight import NarrowWeight, can_be_narrowed
from ..numerics.block_product import Blocks, can_lay_out
from ..numerics.free_heap import give_back_free_heap
from ..numerics.pages import file_mappings, give_back, in_files
from .blocked_weight import BlockedWeight, LaidOut
from .forwards.blocked_forward import attach, weight_of
from .forwards.module_forward import take_off

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """What `lay_out` did, or `lay_out_in_codes`, or `lay_out_narrow`."""

    modules: int  # linear modules that multiply from another layout now
    bytes: int  # in that layout
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

    def in_blocks(weight: Tensor) -> BlockedWeight | None:
        dtype = rounded if weight.dtype == torch.float32 else weight.dtype
        return None if dtype is None else BlockedWeight.of(weight, dtype, wide)

    made, done = _laid_out(model, can_lay_out, in_blocks)
    # A lookup keeps its bits.
    _look_up_in({place: one for place, one in made.items() if one.blocks.tensor.dtype == one.origin.dtype}, model)
    return done


def lay_out_in_codes(model: nn.Module, codes: Dtype, *, wide: torch.dtype = torch.float32) -> Layout:
    """Have the linear modules of `model` multiply by codes of their weights, and give the originals' memory back.

    All that `lay_out` says of blocks holds of codes. Besides, a lookup in an embedding that shares its weight reads the
    original, and a state dict holds the originals, bit for bit. Beside the codes one original is in memory at a time.

    Args:
        model: Changed in place.
        codes: What weights are rounded to: INT8, or INT4, which leaves the output head and odd shapes in 8 bits: see
            `codes_of_head` and `coding_for`.
        wide: What many rows are computed in: float32, or bfloat16 for weights in it.
    """
    of_head = _weight_of_head(model)

    def to(weight: Tensor) -> Dtype:
        return codes_of_head(codes) if weight is of_head else codes

    return _laid_out(
        model,
        lambda weight: can_be_coded(weight, to(weight)),
        lambda weight: BlockedWeight.coded(weight, to(weight), wide),
    )[1]


def lay_out_narrow(model: nn.Module, dtype: torch.dtype, *, rounds: bool = False) -> Layout:
    """Have the linear modules of a float32 model multiply by weights in 16 bit, and give the originals' memory back.

    All that `lay_out` says of blocks holds of these, and a state dict holds the originals. Weights of which a number is not
    one of `dtype` stay as they are, but where it `rounds` them.

    Args:
        model: Changed in place.
        dtype: bfloat16 or float16.
        rounds: Whether weights are rounded. A lookup in an embedding that shares its weight reads the original then.
    """
    narrowed = NarrowWeight.rounded if rounds else NarrowWeight.exactly
    made, done = _laid_out(
        model, can_be_narrowed, lambda weight: BlockedWeight.narrow(weight, narrowed(weight, dtype))
    )
    if not rounds:
        _look_up_in(made, model)
    return done


def _laid_out(
    model: nn.Module, can_be: Callable[[Tensor], bool], make: Callable[[Tensor], BlockedWeight | None]
) -> tuple[dict[_Place, BlockedWeight], Layout]:
    """Bring weights that are views of their files into another layout; return what was made of each, and of all."""
    mappings = file_mappings()
    made: dict[_Place, BlockedWeight] = {}
    count = given_back = 0
    # The largest first, for which both copies lie in memory at the same time.
    for module in sorted(_linear_modules(model, can_be), key=lambda one: -one.weight.numel()):
        weight, place = module.weight, _place(module.weight)
        if place not in made:
            blocked = make(weight) if list(in_files([weight.data], mappings)) else None
            if blocked is None or not blocked.fits(weight):  # written to meanwhile
                continue
            made[place] = blocked
            given_back += give_back(weight.data, mappings)
        attach(module, made[place])
        count += 1
    if made:
        give_back_free_heap()  # of what the weights were laid out with
    done = Layout(count, sum(blocked.nbytes for blocked in made.values()), given_back)
    logger.debug("%s: %s", type(model).__name__, done)
    return made, done


def _look_up_in(made: dict[_Place, BlockedWeight], model: nn.Module) -> None:
    """Have embeddings that share one of these weights look up in what was made of it."""
    for embedding in _embeddings(model):
        if shared := made.get(_place(embedding.weight)):
            attach(embedding, shared)


def take_back(model: nn.Module) -> int:
    """Undo `lay_out` and its like, and `compile_products`; return how many modules were changed back."""
    return sum(take_off(module) for module in model.modules())


def blocks_of(module: nn.Module) -> Blocks | None:
    """Return the blocks that `module` multiplies from; None where it has none, or its weight has changed."""
    layout = _layout_of(module)
    return layout if isinstance(layout, Blocks) else None


def codes_of(module: nn.Module) -> CodedWeight | None:
    """Return the codes that `module` multiplies by; None where it has none, or its weight has changed."""
    layout = _layout_of(module)
    return layout if isinstance(layout, CodedWeight) else None


def narrow_of(module: nn.Module) -> NarrowWeight | None:
    """Return the 16-bit weight that a float32 `module` multiplies by; None where it has none, or its weight has changed."""
    layout = _layout_of(module)
    return layout if isinstance(layout, NarrowWeight) else None


def _layout_of(module: nn.Module) -> LaidOut | None:
    blocked = weight_of(module)
    if blocked is None or not isinstance(module, nn.Linear) or not blocked.fits(module._parameters.get("weight")):
        return None
    return blocked.blocks


_Place: TypeAlias = tuple[int, torch.Size]


def _place(weight: Tensor) -> _Place:
    return weight.data_ptr(), weight.shape


def _linear_modules(model: nn.Module, can_be: Callable[[Tensor], bool]) -> Iterator[nn.Linear]:
    for module in model.modules():
        # A subclass, and a module whose forward an offloading hook has replaced, compute in their own way.
        if type(module) is not nn.Linear or "forward" in module.__dict__ or type(module.weight) is not nn.Parameter:
            continue
        if can_be(module.weight) and not module.weight.is_inference():
            yield module


def _weight_of_head(model: nn.Module) -> Tensor | None:
    """Return what the output head of a model of transformers multiplies by; None where there is none."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight: Tensor | None = getattr(head, "weight", None)
    return weight


def _embeddings(model: nn.Module) -> Iterator[nn.Embedding]:
    for module in model.modules():
        # With max_norm a lookup writes into the table.
        if type(module) is nn.Embedding and "forward" not in module.__dict__ and module.max_norm is None:
            yield module
