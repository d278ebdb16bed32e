"""What a known decoder layer multiplies by and divides by, as far as all of it is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...kernels.row_product import Weighed
from .compiled_products import weighed
from .gated_forward import gated_weights
from .layer_forward import (
    ATTENTION,
    INNER_NORM,
    INPUT_NORM,
    LAST,
    LAST_OF_MLP,
    MLP,
    PROJECTIONS,
    CompiledLayer,
    is_step_of_few_rows,
)
from .norm_forward import weight_and_epsilon
from .plain_calls import has_hook

# The weight of a norm, and what is added to the mean.
Norm: TypeAlias = tuple[Tensor, float]


@dataclass(frozen=True, slots=True)
class PartsOfLayer:
    """The weights of a layer, in the order in which they are used, and what its attention works with."""

    norm: Norm
    projections: tuple[Weighed, ...]  # of queries, keys and values
    head_norms: tuple[Norm, ...]  # of queries and keys, where there are any
    last: Weighed  # of attention
    inner_norm: Norm
    gate: Weighed
    up: Weighed
    last_of_mlp: Weighed
    head_dim: int
    scaling: float

    @property
    def heads(self) -> int:
        """Of queries."""
        return self.projections[0][0].shape[0] // self.head_dim

    @property
    def shared(self) -> int:
        """Heads of keys."""
        return self.projections[1][0].shape[0] // self.head_dim

    @property
    def of_values(self) -> int:
        """Numbers of all heads of values."""
        return self.projections[2][0].shape[0]

    def key(self) -> tuple[object, ...]:
        """Return what is another where a weight lies elsewhere or is of another shape."""
        weights = (*self.projections, self.last, self.gate, self.up, self.last_of_mlp)
        norms = (self.norm, *self.head_norms, self.inner_norm)
        return (
            self.head_dim, self.scaling,
            *((weight.data_ptr(), weight.shape, weight.stride(0), weight.dtype) for weight, _, _ in weights),
            *(0 if one is None else one.data_ptr() for _, *others in weights for one in others),
            *((weight.data_ptr(), epsilon) for weight, epsilon in norms),
        )  # fmt: skip


class Like:
    """Tensors of the rows of a step, of any widths: each is asked for once, and nothing is ever in it."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._made: dict[tuple[int, ...], Tensor] = {x.shape[2:]: x}

    def of(self, *shape: int) -> Tensor:
        """Return one of shape (*rows, *shape)."""
        if shape not in self._made:
            self._made[shape] = self._x.new_empty((*self._x.shape[:-1], *shape))
        return self._made[shape]


def parts_of_layer(  # noqa: PLR0911  (each part may be missing)
    value: CompiledLayer, layer: Any, x: Tensor, like: Like
) -> PartsOfLayer | None:
    """Return the parts of a layer; None where a module of it is to compute something of these rows by itself.

    Args:
        value: Of the layer.
        layer: A module whose forward was known.
        x: The rows, of shape (batch, positions, width).
        like: Of x.
    """
    if not is_step_of_few_rows(value, layer, x):
        return None
    modules = layer._modules
    attention, mlp = modules[ATTENTION], modules[MLP]
    of_attention, head_dim, scaling = attention._modules, attention.head_dim, attention.scaling
    if attention.training and attention.attention_dropout:
        return None
    if type(head_dim) is not int or type(scaling) is not float or any(value.form.window(attention).values()):
        return None
    norm = _norm(modules[INPUT_NORM], x)
    projections = _weights([of_attention[name] for name in PROJECTIONS], x)
    if norm is None or projections is None:
        return None
    outputs = [weight.shape[0] for weight, _, _ in projections]
    if any(count % head_dim for count in outputs):
        return None
    head_norms: list[Norm] = []
    for name, count in zip(value.form.norms or (), outputs, strict=False):
        of_heads = _norm(of_attention[name], like.of(count // head_dim, head_dim))
        if of_heads is None:
            return None
        head_norms.append(of_heads)
    last, inner_norm = _weights([of_attention[LAST]], like.of(outputs[0])), _norm(modules[INNER_NORM], x)
    gates = gated_weights(mlp, x)
    if last is None or inner_norm is None or gates is None:
        return None
    last_of_mlp = _weights([mlp._modules[LAST_OF_MLP]], like.of(gates[0][0].shape[0]))
    width = x.shape[-1]
    if last_of_mlp is None or not last[0][0].shape[0] == last_of_mlp[0][0].shape[0] == width:
        return None
    return PartsOfLayer(
        norm,
        tuple(projections),
        tuple(head_norms),
        last[0],
        inner_norm,
        gates[0],
        gates[1],
        last_of_mlp[0],
        head_dim,
        scaling,
    )


def _norm(module: Any, x: Tensor) -> Norm | None:
    return None if has_hook(module) else weight_and_epsilon(module, x)


def _weights(modules: Sequence[Any], x: Tensor) -> list[Weighed] | None:
    """Return what modules would multiply the same rows by, all of one dtype; None where one is to compute it by itself."""
    weights: list[Weighed] = []
    dtype: torch.dtype | None = None
    for module in modules:
        weight = None if has_hook(module) else weighed(module, x)
        if weight is None or weight[0].dtype is not (dtype or weight[0].dtype):
            return None
        dtype = weight[0].dtype
        weights.append(weight)
    return weights
