"""Codes in a class of tensors made as torchao makes its own: shown in another dtype."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from safe_dtype.models.casting import is_finite
from safe_dtype.models.quantized.coded_tensors import codes_in, shows_a_dtype


class Codes(torch.Tensor):
    """Whole numbers with a scale and, where they have one, an offset: the names are torchao's protocol."""

    tensor_data_names: ClassVar = ["qdata", "scale"]
    tensor_attribute_names: ClassVar = ["block_size", "dtype"]
    optional_tensor_data_names: ClassVar = ["offset"]

    def __new__(cls, qdata: Tensor, scale: Tensor, block_size: int, dtype: torch.dtype, offset: Any = None) -> Codes:
        """Make it; its numbers are elsewhere."""
        made: Codes = torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=dtype)  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute nothing: what is asked for here are its parts."""
        raise NotImplementedError(str(func))

    def __init__(self, qdata: Tensor, scale: Tensor, block_size: int, dtype: torch.dtype, offset: Any = None) -> None:
        """Keep the parts."""
        self.qdata, self.scale, self.block_size, self.offset = qdata, scale, block_size, offset


def test_another_dtype() -> None:
    """Codes and sizes are the same, scales of the former dtype are cast, and others stay."""
    scale, offset = torch.tensor([0.5]).bfloat16(), torch.zeros(1, dtype=torch.float64)
    codes = Codes(torch.ones(2, 2, dtype=torch.int8), scale, 32, torch.bfloat16, offset)
    other: Any = codes_in(codes, {torch.bfloat16}, torch.float32)
    assert (type(other), other.dtype, other.scale.dtype, other.offset.dtype) == (
        Codes, torch.float32, torch.float32, torch.float64,
    )  # fmt: skip
    assert other.qdata is codes.qdata
    assert other.block_size == 32
    assert codes.dtype is torch.bfloat16


def test_what_is_no_number() -> None:
    """A scale that is no number is found, and codes are not asked what they cannot tell."""
    codes = Codes(torch.ones(2, 2, dtype=torch.int8), torch.tensor([0.5]), 32, torch.float32)
    assert is_finite([codes])
    codes.scale[0] = torch.nan
    assert not is_finite([codes])


def test_which() -> None:
    """Tensors of torch's own show no dtype but that of their numbers."""
    assert shows_a_dtype(Codes(torch.ones(1, 1, dtype=torch.int8), torch.ones(1), 1, torch.bfloat16))
    assert not shows_a_dtype(torch.ones(2))
    assert not shows_a_dtype(nn.Parameter(torch.ones(2)))
