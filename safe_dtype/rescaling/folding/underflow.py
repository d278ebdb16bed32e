"""Multiply weights by powers of two, and keep what float16 loses by that: a weight comes back bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...facts import Rows
from ...models.original_weights import Exponents

_AT_ONCE = 2**24  # elements


@dataclass(frozen=True, eq=False, slots=True)
class Underflow:
    """The elements of a moved weight that multiplying it back does not restore, as they are when it is not moved."""

    index: Tensor | None  # (elements,) of the flattened weight; None: all of it is kept, for that takes less
    values: Tensor  # (elements,), or of the shape of the weight; on the CPU
    error: float  # RMS of what the weight lost, over that of all of it, moved; infinite beyond the dtype's end

    def __deepcopy__(self, _memo: Any) -> Underflow:
        return self


def multiplied(weight: Tensor, exponents: Exponents) -> Tensor:
    """Return `weight` with its rows multiplied, in a new tensor.

    The old one may be a view of a mapped file, whose pages would be kept twice.
    """
    changes = [(rows, exponent) for rows, exponent in exponents.items() if exponent]
    if len(changes) > 1:  # rows may be named twice, and are rounded once
        return (_wide(weight) * _all_factors(exponents, weight)).to(weight.dtype)
    rows, exponent = changes[0] if changes else (None, 0)
    if rows is None:
        return weight * math.ldexp(1.0, exponent)
    product = weight.clone()
    product[_index(rows, weight)] *= math.ldexp(1.0, exponent)
    return product


def moved(
    weight: Tensor, before: Exponents, after: Exponents, lost: Underflow | None
) -> tuple[Tensor, Underflow | None]:
    """Return a weight that is multiplied by `after` in place of `before`, and the bits that it has lost now.

    Elements that somebody has written over since they were moved count as what they are now.
    """
    if not weight.dim():
        product, lost = moved(weight[None], before, after, lost)
        return product[0], lost
    change = {rows: after.get(rows, 0) - before.get(rows, 0) for rows in (*before, *after)}
    product = multiplied(weight, change)
    undone = multiplied(product, {rows: -exponent for rows, exponent in change.items()})
    differs = undone != weight
    del undone
    if lost is not None:
        where, values = _still(weight, before, lost)
        product[where] = (values * _factors(after, weight, where)).to(weight.dtype)
        differs[where] = (_wide(product[where]) * _factors(_inverse(after), weight, where)) != values
        whole = _wide(weight) * _all_factors(_inverse(before), weight)
        whole[where] = values
    elif not bool(differs.any()):
        return product, None
    else:
        whole = _wide(weight) * _all_factors(_inverse(before), weight)
    return product, _kept(product, after, whole, differs)


def moved_from(whole: Tensor, exponents: Exponents, like: Tensor) -> tuple[Tensor, Underflow | None]:
    """Return a weight that is `whole` when it is not moved, rounded once to the dtype of `like`, and what it has lost.

    Args:
        whole: In float32.
        exponents: That it is multiplied by.
        like: The weight so far: for its dtype and its device.
    """
    if not whole.dim():
        product, lost = moved_from(whole[None], exponents, like[None])
        return product[0], lost
    whole = whole.to(like.device)
    product = (whole * _all_factors(exponents, whole)).to(like.dtype)
    differs = _wide(product) * _all_factors(_inverse(exponents), whole) != whole
    return product, _kept(product, exponents, whole, differs)


def lost_in_half(weight: Tensor, exponents: Exponents) -> float:
    """Return how much float16 loses of `weight` once it is multiplied: RMS of the loss over that of the weight.

    A part of the weight at a time: beside the largest one of a model there may be no room for three copies of it.
    """
    weight = weight if weight.dim() else weight[None]
    factors = _all_factors(exponents, weight).expand(weight.shape)
    parts = max(1, weight.numel() // _AT_ONCE)
    lost, size = 0.0, 0.0
    for values, factor in zip(weight.chunk(parts), factors.chunk(parts), strict=True):
        product = _wide(values) * factor
        size = math.hypot(size, float(torch.linalg.vector_norm(product)))
        lost = math.hypot(lost, float(torch.linalg.vector_norm(product.half().float() - product)))
    return lost / size if size else 0.0


def unmoved(weight: Tensor, exponents: Exponents, lost: Underflow | None) -> Tensor:
    """Return a moved weight without its exponents, in float32 at least, on the CPU."""
    if not weight.dim():
        return unmoved(weight[None], exponents, lost)[0]
    here = weight.detach().cpu()
    whole = _wide(here) * _all_factors(_inverse(exponents), here)
    if lost is not None:
        where, values = _still(here, exponents, lost)
        whole[where] = values
    return whole


def _kept(product: Tensor, exponents: Exponents, whole: Tensor, differs: Tensor) -> Underflow | None:
    """Return what is lost of `whole` where `differs`."""
    if not bool(differs.any()):
        return None
    where = differs.nonzero(as_tuple=True)
    values = whole[where]
    exact = values * _factors(exponents, product, where)
    # Where all of it is lost, what is left is no measure.
    size = float(torch.linalg.vector_norm(product.float())) or float(torch.linalg.vector_norm(exact))
    error = float(torch.linalg.vector_norm(_wide(product[where]) - exact)) / size if size else math.inf
    index = differs.flatten().nonzero().squeeze(-1)
    if product.numel() < 2**31:
        index = index.int()
    values = _compact(values, product.dtype)
    if index.numel() * (index.element_size() + values.element_size()) > product.numel() * product.element_size():
        return Underflow(None, _compact(whole, product.dtype).cpu(), error if math.isfinite(error) else math.inf)
    return Underflow(index.cpu(), values.cpu(), error if math.isfinite(error) else math.inf)


def _still(weight: Tensor, exponents: Exponents, lost: Underflow) -> tuple[Any, Tensor]:
    """Return where `weight` is still what was kept of it, moved, as an index into it; and what was kept there."""
    values = _wide(lost.values.to(weight.device))
    if lost.index is None:
        where = (values * _all_factors(exponents, weight)).to(weight.dtype) == weight
        return where, values[where]
    indices = torch.unravel_index(lost.index.to(weight.device).long(), weight.shape)
    same = (values * _factors(exponents, weight, indices)).to(weight.dtype) == weight[indices]
    return tuple(one[same] for one in indices), values[same]


def _compact(values: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = values.to(dtype)
    return narrow if torch.equal(narrow.to(values.dtype), values) else values


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _factors(exponents: Exponents, weight: Tensor, where: Any) -> Tensor:
    return _all_factors(exponents, weight).expand(weight.shape)[where]


def _all_factors(exponents: Exponents, weight: Tensor) -> Tensor:
    """Return what the elements of `weight` are multiplied by, float32, in a shape that broadcasts to the weight's."""
    factors = torch.full([1] * weight.dim(), math.ldexp(1.0, exponents.get(None, 0)), device=weight.device)
    for rows, exponent in exponents.items():
        if rows is not None:
            sizes = [1] * weight.dim()
            sizes[rows.dim] = weight.shape[rows.dim]
            along = torch.ones(sizes, device=weight.device)
            along[_index(rows, weight)] = math.ldexp(1.0, exponent)
            factors = factors * along
    return factors


def _inverse(exponents: Exponents) -> dict[Rows | None, int]:
    return {rows: -exponent for rows, exponent in exponents.items()}


def _index(rows: Rows, weight: Tensor) -> tuple[slice, ...]:
    index: list[slice] = [slice(None)] * weight.dim()
    index[rows.dim] = rows.of(weight.shape[rows.dim])
    return tuple(index)
