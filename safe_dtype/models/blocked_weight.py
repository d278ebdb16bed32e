"""A weight in another layout, with what shows that the weight is not what it was made of any more."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..facts import Dtype, coding_for
from ..kernels.weights.coded_product import multiply_coded
from ..kernels.weights.coded_weight import CodedWeight
from ..kernels.weights.narrow_weight import NarrowWeight, multiply_narrow
from ..numerics.block_product import Blocks, product
from ..numerics.pages import Pages

LaidOut: TypeAlias = "Blocks | CodedWeight | NarrowWeight"


@dataclass(slots=True, eq=False)
class BlockedWeight:
    """What a weight that is a view of its file is multiplied by, and how to tell that nobody has changed it since.

    Writing to `weight.data`, as PEFT merges adapters, leaves no trace in torch, but in the pages.
    """

    blocks: LaidOut
    origin: Tensor  # what the weight was: it keeps the file mapped, so that nothing else comes to lie at its address
    version: int
    wide: torch.dtype
    changed: bool = False
    address: int = field(init=False)
    pages: Pages = field(init=False)

    def __post_init__(self) -> None:
        self.address, self.pages = self.origin.data_ptr(), Pages.of(self.origin)

    def __deepcopy__(self, _memo: Any) -> None:
        """Copies of a module are plain."""

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype, wide: torch.dtype) -> BlockedWeight:
        """Make the blocks of a weight."""
        return cls(Blocks.of(weight, dtype), weight.data, weight._version, wide)

    @classmethod
    def coded(cls, weight: Tensor, codes: Dtype, wide: torch.dtype) -> BlockedWeight | None:
        """Round a weight to codes; None where they do not hold its numbers."""
        coding = coding_for(codes, *weight.shape)
        coded = None if coding is None else CodedWeight.of(weight, coding)
        return None if coded is None else cls(coded, weight.data, weight._version, wide)

    @classmethod
    def narrow(cls, weight: Tensor, narrow: NarrowWeight | None) -> BlockedWeight | None:
        """Take a float32 weight as it is held in 16 bit; None where it is not."""
        return None if narrow is None else cls(narrow, weight.data, weight._version, torch.float32)

    @property
    def in_features(self) -> int:
        """How many inputs it has."""
        return self.origin.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes beside its origin."""
        return self.blocks.nbytes

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return `x @ weight.T + bias` in the dtype of `x`."""
        if isinstance(self.blocks, CodedWeight):
            return multiply_coded(x, self.blocks, bias, wide=self.wide)
        if isinstance(self.blocks, NarrowWeight):
            return multiply_narrow(x, self.blocks, bias)
        return product(x, self.blocks, bias, wide=self.wide)

    def fits(self, weight: Any) -> bool:
        """Whether `weight` is what the blocks were made of, and nobody has written to it since."""
        self.changed = self.changed or not self._is(weight) or self.pages.is_written()
        return not self.changed

    def _is(self, weight: Any) -> bool:
        # The same numbers at the same place; the dtype and the sign may be another view's, and sharing memory with
        # other processes moves what is stored.
        return (
            type(weight) is nn.Parameter
            and weight.is_cpu
            and weight.is_set_to(self.origin)
            and weight.data_ptr() == self.address
            and weight.dtype is self.origin.dtype
            and not weight.is_neg()
            and not weight.is_inference()
            and weight._version == self.version
        )
