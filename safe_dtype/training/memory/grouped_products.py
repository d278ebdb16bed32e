"""Products of experts, followed without numbers in every dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_GROUPED = getattr(getattr(torch.ops.aten, "_grouped_mm", None), "default", None)


class GroupedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Says of what shape a grouped product is: torch's own rule for fake tensors refuses all but bfloat16.

    CPUs compute such products in float32 as well, and transformers makes the experts of its models of them. (torch 2.13,
    `torch/_meta_registrations.py`, `_meta_grouped_mm_common`.)
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return a tensor without numbers for a grouped product; all else is torch's."""
        kwargs = kwargs or {}
        if _GROUPED is None or func is not _GROUPED:
            return func(*args, **kwargs)
        left, right = args[:2]
        offsets = args[2] if len(args) > 2 else kwargs.get("offs")
        return left.new_empty(_shape(left, right, offsets), dtype=kwargs.get("out_dtype") or left.dtype)


def _shape(left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None) -> tuple[int, ...]:
    """Return (rows, columns) where one side is of groups, and (groups, rows, columns) where both are, or what they sum over is."""
    rows, columns = left.shape[-2], right.shape[-1]
    if left.dim() == right.dim():
        groups = left.shape[0] if left.dim() > 2 or offsets is None else offsets.shape[0]
        return groups, rows, columns
    return rows, columns
