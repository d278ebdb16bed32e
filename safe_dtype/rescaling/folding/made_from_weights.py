"""Adapters that PEFT makes from the weights themselves, where those were moved at that time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...models.original_weights import Exponents
from .underflow import multiplied


def in_its_own_size(wrapper: nn.Module, exponents: Exponents, *, was_written: bool) -> None:
    """Bring a new adapter into the size of the weight that it wraps, which is the model's own again.

    What PiSSA, OLoRA and others take out of a weight and put into the adapter is linear in that weight. DoRA's magnitudes
    are not, and are computed anew.

    Args:
        wrapper: What PEFT has put around a module.
        exponents: By which rows of its weight were multiplied when the adapter was made.
        was_written: Whether the adapter was taken out of the weight.
    """
    layer: Any = wrapper
    with torch.no_grad():
        for adapter, outer in dict(getattr(layer, "lora_B", {})).items():
            if was_written:
                inner = layer.lora_A[adapter].weight
                outer.weight.data = multiplied(outer.weight.data, _of_dimension(0, exponents))
                inner.data = multiplied(inner.data, _of_dimension(1, exponents))
            magnitude = dict(getattr(layer, "lora_magnitude_vector", None) or {}).get(adapter)
            if magnitude is not None:
                magnitude.update_layer(
                    base_layer=layer.get_base_layer(),
                    lora_A=layer.lora_A[adapter].weight,
                    lora_B=outer.weight,
                    scaling=layer.scaling[adapter],
                )


def _of_dimension(dimension: int, exponents: Exponents) -> Exponents:
    """Return what undoes the exponents of rows in one dimension; a weight as a whole counts as the first."""
    return {rows: -exponent for rows, exponent in exponents.items() if (0 if rows is None else rows.dim) == dimension}
