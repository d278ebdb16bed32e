"""What is computed of rows between two products, as calls of a program: their sums, and their copies to other places."""

from __future__ import annotations

import torch

from ..machine_code import Kernel
from ..target import code_of_floats
from .call import At, KernelCall

FUNCTION = "add_or_copy"
# What its task holds, 8 bytes each; strides are in numbers, and `is_copy` is 1 or 0.
FIELDS = ("a", "b", "y", "count", "is_copy", "heads", "batch", "head", "y_batch", "y_head")
_KERNEL = Kernel(FUNCTION, "programs.row_parts_ir", "sums in {}", code_of_floats)


def can_add(dtype: torch.dtype) -> bool:
    """Whether there are sums and copies in `dtype` on this machine."""
    return _KERNEL.has(dtype)


def sum_of(a: At, b: At, y: At, count: int, dtype: torch.dtype) -> KernelCall:
    """Return the call that writes the sums of two lists of numbers, each rounded once.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_add`.
    """
    return KernelCall(_KERNEL.address(dtype), 1, 1, (a, b, y, count, 0, 1, 0, 0, 0, 0))


def copy_of_heads(
    x: At, y: At, shape: tuple[int, int, int], strides: tuple[int, int, int | At, int | At], dtype: torch.dtype
) -> KernelCall:
    """Return the call that copies numbers of shape (batch, heads, width).

    Args:
        x: Where they lie.
        y: Where they are written.
        shape: batch, heads and width.
        strides: From one item of the batch, and one head, to the next, in numbers: of `x` and of `y`.
        dtype: Of all numbers.

    Raises:
        RuntimeError: If there is no code for this dtype on this machine: see `can_add`.
    """
    batch, heads, width = shape
    return KernelCall(_KERNEL.address(dtype), batch * heads, batch * heads, (x, x, y, width, 1, heads, *strides))
