"""Rows divided by their root mean square, in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from .machine_code import Kernel
from .programs.call import At, KernelCall
from .target import code_of_floats
from .threads import bits_of, run

FUNCTION = "normalize_rows"
# What its task holds, 8 bytes each; `epsilon` is the bits of a float.
FIELDS = ("x", "y", "weight", "width", "epsilon")
_AT_A_TIME = 2**14  # numbers that a thread takes at a time
_KERNEL = Kernel(FUNCTION, "norm_rows_ir", "norms of rows in {}", code_of_floats)


def normalize_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Return `weight * (x * rsqrt(mean(x**2) + epsilon))`, of the shape of `x`.

    Computed in float32 and rounded where transformers rounds, after the division and after the product. So a number can
    be one rounding from transformers', where the mean that is added up in another order is.

    Args:
        x: Shape (..., width), contiguous, on the CPU, in float32, bfloat16 or float16.
        weight: Shape (width,), contiguous, in the dtype of `x`.
        epsilon: What is added to the mean.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_normalize`.
    """
    address = _KERNEL.address(x.dtype)
    width = weight.shape[0]
    y = torch.empty_like(x)
    fields = (x.data_ptr(), y.data_ptr(), weight.data_ptr(), width, bits_of(epsilon))
    run(address, x.numel() // width, max(1, _AT_A_TIME // width), fields)
    return y


def norm_of_rows(x: At, y: At, weight: int, epsilon: float, shape: tuple[int, int], dtype: torch.dtype) -> KernelCall:
    """Return the call that writes the norms of rows as `normalize_rows` does; `y` may be `x`.

    Args:
        x: Where the rows lie, one behind the other.
        y: Where their norms are written.
        weight: The address of what they are multiplied by.
        epsilon: What is added to the mean.
        shape: How many rows there are, and how long each is.
        dtype: Of all numbers.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_normalize`.
    """
    rows, width = shape
    return KernelCall(
        _KERNEL.address(dtype), rows, max(1, _AT_A_TIME // width), (x, y, weight, width, bits_of(epsilon))
    )


def can_normalize(dtype: torch.dtype) -> bool:
    """Whether rows in `dtype` can be normalized on this machine."""
    return _KERNEL.has(dtype)
