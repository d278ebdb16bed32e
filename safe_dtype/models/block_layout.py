"""Give the linear modules of a model weights in blocks, where that costs no memory."""

from __future__ import annotations

import copyreg
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..numerics.block_product import BAG_ROWS, Blocks, can_lay_out, product
from ..numerics.pages import file_mappings, give_back, in_files, is_written, is_written_midway

logger = logging.getLogger(__name__)

_BLOCKS = "_safe_dtype_blocks"


@dataclass(frozen=True, slots=True)
class Layout:
    """What `lay_out` did."""

    modules: int  # linear modules that multiply from blocks now
    bytes: int  # in blocks
    given_back: int  # bytes of the originals that need no memory any more


@dataclass(slots=True)
class Prompts:
    """How often modules of one model have multiplied many rows: that begins with every prompt."""

    count: int = 0


@dataclass(slots=True, eq=False)
class BlockedWeight:
    """The blocks of a weight, with what shows whether the weight has changed since."""

    blocks: Blocks
    origin: Tensor  # what the weight was: it keeps the file mapped, so that nothing else comes to lie at its address
    version: int
    wide: torch.dtype
    prompts: Prompts
    asked: int = -1  # at which prompt all of its pages were looked at
    changed: bool = False

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype, wide: torch.dtype, prompts: Prompts) -> BlockedWeight:
        """Make the blocks of a weight."""
        return cls(Blocks.of(weight, dtype), weight.data, weight._version, wide, prompts)

    def fits(self, weight: Tensor) -> bool:
        """Whether nobody has written to the weight or replaced it since.

        Writing to `weight.data`, as PEFT merges adapters, leaves no trace in torch, but in the pages.
        """
        self.changed = self.changed or not self._is(weight) or is_written(self.origin)
        return not self.changed

    def still_fits(self, weight: Tensor, rows: int) -> bool:
        """Ask `fits` once a prompt, and before few rows, look at one page: what changes a weight as a whole shows."""
        prompts = self.prompts
        if rows > BAG_ROWS:
            prompts.count += 1
        if self.asked != prompts.count:
            self.asked = prompts.count
            return self.fits(weight)
        if not self._is(weight) or is_written_midway(self.origin):
            self.changed = True
        return not self.changed

    def _is(self, weight: Tensor) -> bool:
        # The same numbers at the same place; the dtype may be another view's.
        return (
            type(weight) is nn.Parameter
            and weight.is_cpu
            and weight.is_set_to(self.origin)
            and weight.dtype is self.origin.dtype
            and not weight.is_inference()
            and weight._version == self.version
        )


class BlockedLinear(nn.Linear):
    """`nn.Linear` that multiplies from blocks. Copies and pickles of it are plain `nn.Linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        """Multiply; from the plain weight where a graph is recorded, or where the weight has changed."""
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return super().forward(input)
        blocked = _blocked_weight_of(self)
        # Not `self.weight`, which takes a microsecond; every one counts, for this is called 200 times a token.
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if blocked is None or weight is None or not _can_multiply(self, input, weight, bias):
            return super().forward(input)
        if not _still_fits(self, weight, blocked, input.numel() // self.in_features):
            return super().forward(input)
        return product(input, blocked.blocks, bias, wide=blocked.wide)

    def _get_name(self) -> str:
        return "Linear"

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _reduced(self, nn.Linear)


class BlockedEmbedding(nn.Embedding):
    """`nn.Embedding` that looks up in the blocks of the output head it is tied to, so that no page of its own is read.

    Copies and pickles of it are plain `nn.Embedding`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name for it)
        """Look up; in the plain table where a graph is recorded, or where the table has changed."""
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return super().forward(input)
        blocked = _blocked_weight_of(self)
        if (
            blocked is None
            or input.dtype not in (torch.int64, torch.int32)
            or not _is_plain(input)
            or _needs_gradient(self.weight)
            or not _still_fits(self, self.weight, blocked, input.numel())
        ):
            return super().forward(input)
        return blocked.blocks.rows(input)

    def _get_name(self) -> str:
        return "Embedding"

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return _reduced(self, nn.Embedding)


def _blocked_weight_of(module: nn.Module) -> BlockedWeight | None:
    """Return the blocks of a module. In training they are of no use any more, and let go for their memory."""
    if module.training and torch.is_grad_enabled():
        module.__dict__.pop(_BLOCKS, None)
    return module.__dict__.get(_BLOCKS)


def _is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers in it to compute with, of this process, not followed by `torch.vmap` and the like."""
    return (
        type(tensor) is Tensor
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def _can_multiply(module: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `x` is what blocks are for; what plain torch would refuse, it shall refuse in its own words."""
    dtype = weight.dtype
    return (
        x.dtype is dtype
        and (bias is None or bias.dtype is dtype)
        and _is_plain(x)
        and x.dim() > 0
        and x.shape[-1] == module.in_features
        and not torch.is_autocast_enabled("cpu")
        and not _needs_gradient(x, weight, bias)
    )


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)


def _still_fits(module: nn.Module, weight: Tensor, blocked: BlockedWeight, rows: int) -> bool:
    """Whether the blocks are those of the module's weight; otherwise they are let go, for their memory."""
    if blocked.still_fits(weight, rows):
        return True
    module.__dict__.pop(_BLOCKS, None)
    logger.info("a weight of shape %s has changed: it is multiplied as it is", tuple(weight.shape))
    return False


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {BlockedLinear: nn.Linear, BlockedEmbedding: nn.Embedding}


def lay_out(model: nn.Module, *, rounded: torch.dtype | None = None, wide: torch.dtype = torch.float32) -> Layout:
    """Lay the weights of the linear modules of `model` out in blocks, and give the memory of the originals back.

    Only weights that are views of their files are taken, since of others there would be two copies. The parameters
    stay what they are; a weight that is written to later is multiplied from the parameter again. A write to some rows
    behind autograd's back (`weight.data[3] = ...`) is noticed at the next prompt of more than 8 rows. In training the
    plain weights are multiplied, and the blocks let go. Compiled, exported and traced graphs hold the plain weights;
    `torch.jit.script` wants `take_back` first.

    Args:
        model: Changed in place.
        rounded: Round weights in float32 to this dtype; None leaves float32 as it is. Activations stay in float32.
        wide: What many rows are computed in.
    """
    mappings = file_mappings()
    made: dict[_Place, BlockedWeight] = {}
    prompts = Prompts()
    count = given_back = 0
    # The largest first, for which both copies lie in memory at the same time.
    for module in sorted(_linear_modules(model), key=lambda one: -one.weight.numel()):
        weight, place = module.weight, _place(module.weight)
        if place not in made:
            dtype = rounded if weight.dtype == torch.float32 else weight.dtype
            if dtype is None or not list(in_files([weight.data], mappings)):
                continue
            blocked = BlockedWeight.of(weight, dtype, wide, prompts)
            if not blocked.fits(weight):  # written to meanwhile
                continue
            made[place] = blocked
            given_back += give_back(weight.data, mappings)
        module.__dict__[_BLOCKS] = made[place]
        module.__class__ = BlockedLinear
        count += 1
    for embedding in _embeddings(model):
        shared = made.get(_place(embedding.weight))
        if shared and shared.blocks.tensor.dtype == embedding.weight.dtype:  # a lookup keeps its bits
            embedding.__dict__[_BLOCKS] = shared
            embedding.__class__ = BlockedEmbedding
    done = Layout(count, sum(blocked.blocks.tensor.nbytes for blocked in made.values()), given_back)
    logger.debug("%s: %s", type(model).__name__, done)
    return done


def take_back(model: nn.Module) -> int:
    """Undo `lay_out`; return how many modules were changed back."""
    plain = [module for module in model.modules() if type(module) in _PLAIN]
    for module in plain:
        module.__dict__.pop(_BLOCKS, None)
        module.__class__ = _PLAIN[type(module)]
    return len(plain)


def blocks_of(module: nn.Module) -> Blocks | None:
    """Return the blocks that `module` multiplies from; None where it is plain, or its weight has changed."""
    blocked = module.__dict__.get(_BLOCKS)
    if not isinstance(blocked, BlockedWeight) or not isinstance(module, nn.Linear) or not blocked.fits(module.weight):
        return None
    return blocked.blocks


def _reduced(module: nn.Module, plain: type[nn.Module]) -> tuple[Any, ...]:
    state = {name: value for name, value in module.__dict__.items() if name != _BLOCKS}
    # Not `copyreg.__newobj__`, for which pickle wants the module's own class.
    return copyreg._reconstructor, (plain, object, None), state  # type: ignore[attr-defined]


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
