"""Torch's norms with an eps that is a tensor, so that there is a derivative by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  # torch's own name for it
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DifferentiableNorms(TorchFunctionMode):
    """Inside, torch's own norms take an eps that is a tensor, too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _NORMS and any(isinstance(one, Tensor) for one in (*args[-2:], kwargs.get("eps"))):
            ours, names = _NORMS[func]
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            if isinstance(arguments.get("eps"), Tensor):
                return ours(**{key: value for key, value in arguments.items() if key != "cudnn_enable"})
        return func(*args, **kwargs)


def _layer_norm(
    input: Tensor,  # noqa: A002  # torch's own name for it
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: Tensor,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dims, keepdim=True)
    return _affine(centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps), weight, bias)


def _rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    *,
    eps: Tensor,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(input * torch.rsqrt(input.square().mean(dims, keepdim=True) + eps), weight, None)


def _group_norm(
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: Tensor,
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normed = (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)).reshape(input.shape)
    shape = (-1, *[1] * (input.dim() - 2))
    return _affine(normed, *(None if one is None else one.reshape(shape) for one in (weight, bias)))


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    scaled = normed if weight is None else normed * weight
    return scaled if bias is None else scaled + bias


_WITH_BIAS = ("weight", "bias", "eps", "cudnn_enable")
_NORMS: dict[Any, tuple[Any, tuple[str, ...]]] = {
    F.layer_norm: (_layer_norm, ("input", "normalized_shape", *_WITH_BIAS)),
    torch.layer_norm: (_layer_norm, ("input", "normalized_shape", *_WITH_BIAS)),
    F.rms_norm: (_rms_norm, ("input", "normalized_shape", "weight", "eps")),
    torch.rms_norm: (_rms_norm, ("input", "normalized_shape", "weight", "eps")),
    F.group_norm: (_group_norm, ("input", "num_groups", *_WITH_BIAS)),
    torch.group_norm: (_group_norm, ("input", "num_groups", *_WITH_BIAS)),
}
