"""Linear weights as codes of 8 or 4 bits with their scales.

Codes are symmetric: 8 bits hold a row to within half of its scale, which is its largest number over 127; 4 bits hold 32
inputs of a row by a scale of their own. Scales are in the dtype of what is multiplied, and codes are those of the scales as
they are stored there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...facts import Coding, Dtype, coding_for
from ...numerics.scratch import scratch
from ..row_product import has_code
from . import int4_by_torch

_LARGEST = 127
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Numbers of a weight, in float32 on their way to codes: 4 MB. Where 16 MB are asked for and freed between codes that stay,
# the heap keeps up to 140 MB (glibc 2.36).
_CODED_AT_ONCE = 2**20
_TRIED_AT_ONCE = 2**18  # and for 4 bits, which are tried by two scales: they stay in the caches of a CPU
_LEAST, _MOST = -8, 7
_HALF = 16  # of a group


@dataclass(frozen=True, slots=True)
class CodedWeight:
    """A weight of shape (out_features, in_features): its codes, and their scales, in the dtype of the weight.

    Codes of 4 bits lie two in a byte, with 8 for zero: in rows, the first half of a group in the lower halves of bytes and the
    second one in the upper halves; or `by_torch`, as its product takes them.
    """

    tensor: Tensor  # int8 of the weight's shape; or uint8, (out_features, in_features // 2)
    scales: Tensor  # (out_features,); of groups (out_features, groups), by_torch (groups, out_features)
    coding: Coding
    by_torch: bool = False

    @classmethod
    def of(cls, weight: Tensor, coding: Coding) -> CodedWeight | None:
        """Round a weight to codes, some rows at a time; None where it holds a number that is not finite."""
        outputs, inputs = weight.shape
        group = coding.group or inputs
        by_torch = coding.bits == 4 and not has_code(torch.uint8, weight.dtype) and int4_by_torch.has_product()
        pack = int4_by_torch.packed if by_torch else _packed if coding.bits == 4 else _as_they_are
        kind = torch.uint8 if coding.bits == 4 else torch.int8
        tensor = torch.empty(outputs, inputs * coding.bits // 8, dtype=kind, device=weight.device)
        scales = torch.empty(outputs, inputs // group, dtype=weight.dtype, device=weight.device)
        for start in range(0, outputs, step := _step(coding, inputs)):
            rows = slice(start, start + step)
            some = weight[rows].detach()
            numbers = scratch(some.shape, torch.float32, some.device).copy_(some).view(-1, inputs // group, group)
            codes, scales[rows] = _rounded(numbers, coding, weight.dtype)
            if not scales[rows].isfinite().all():
                return None
            tensor[rows] = pack(codes.view(-1, inputs))
        if coding.group is None:
            return cls(tensor, scales.view(outputs), coding)
        return cls(tensor, scales.T.contiguous() if by_torch else scales, coding, by_torch)

    @property
    def out_features(self) -> int:
        """How many outputs it has."""
        return self.tensor.shape[0]

    @property
    def in_features(self) -> int:
        """How many inputs it has."""
        return self.tensor.shape[1] * 8 // self.coding.bits

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.tensor.nbytes + self.scales.nbytes

    def weight(self) -> Tensor:
        """Return the weight that the codes stand for, in float32."""
        scales = self.scales.float()
        if self.by_torch:
            one_by_one = torch.eye(self.in_features, device=scales.device)
            return int4_by_torch.product(one_by_one, self.tensor, scales, self.coding.group or 0).T.contiguous()
        numbers = torch.empty(self.out_features, self.in_features, device=scales.device)
        self.cast(slice(None), numbers)
        return numbers if self.coding.group else numbers.mul_(scales[:, None])

    def cast(self, rows: slice, into: Tensor) -> Tensor:
        """Write the codes of some outputs into a tensor of their shape, and return it: of groups the codes times their scales.

        Not of codes that lie as torch takes them.
        """
        codes, group = self.tensor[rows], self.coding.group
        if group is None:
            return into.copy_(codes)
        pairs, numbers = codes.view(len(codes), -1, group // 2), into.view(len(codes), -1, group)
        numbers[..., : group // 2] = pairs & 15
        numbers[..., group // 2 :] = pairs >> 4
        numbers += _LEAST
        numbers *= self.scales[rows].to(into.dtype)[:, :, None]
        return into


def rounded(weight: Tensor, coding: Coding) -> Tensor:
    """Return a weight as codes hold it, in float32: what every layout and every product of them is to come to."""
    numbers = weight.detach().to(torch.float32, copy=True).view(len(weight), -1, coding.group or weight.shape[1])
    codes, scales = _rounded(numbers, coding, weight.dtype)
    zero = _LEAST if coding.bits == 4 else 0
    return ((codes.float() + zero) * scales.float()[..., None]).view_as(weight)


def can_be_coded(weight: Tensor, codes: Dtype) -> bool:
    """Whether a weight is of a kind that these codes are made for."""
    return (
        weight.dim() == 2
        and weight.dtype in _DTYPES
        and weight.device.type == "cpu"
        and coding_for(codes, *weight.shape) is not None
        and weight.is_contiguous()
    )


def _step(coding: Coding, inputs: int) -> int:
    """Return how many outputs are rounded at a time: whole blocks of torch's layout."""
    at_once = _TRIED_AT_ONCE if coding.bits == 4 else _CODED_AT_ONCE
    return max(1, at_once // (inputs * int4_by_torch.BLOCK)) * int4_by_torch.BLOCK


def _rounded(numbers: Tensor, coding: Coding, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _in_4_bits(numbers, dtype) if coding.bits == 4 else _in_8_bits(numbers, dtype)


def _smallest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def _in_8_bits(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the codes of groups of numbers, which are changed, and the scale of each, in `dtype`."""
    largest = torch.linalg.vector_norm(numbers, torch.inf, dim=-1)
    scales = (largest / _LARGEST).clamp_(min=_smallest(dtype)).to(dtype)
    numbers /= scales.float()[..., None]
    return numbers.round_().clamp_(-_LARGEST, _LARGEST), scales


def _in_4_bits(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the codes of groups of numbers, 8 for zero, and the scale of each, in `dtype`: those that err less of two."""
    shape = numbers.shape
    columns = numbers.view(-1, shape[-1]).T.contiguous()  # what is reduced over many vectors at once is quick
    most, least = columns.amax(0), columns.amin(0)
    furthest = torch.where(most > -least, most, least)
    # The furthest number has the code -8, for which the sign of the scale is free; then the best scale for these codes.
    scale = _stored(furthest / _LEAST, dtype)
    codes, error = _coded(columns, scale)
    better = _stored((codes * columns).sum(0) / codes.square().sum(0).clamp_(min=1), dtype)
    others, other_error = _coded(columns, better)
    is_nearer = other_error < error
    codes, scale = torch.where(is_nearer, others, codes), torch.where(is_nearer, better, scale)
    scale = torch.where(furthest.isfinite(), scale, furthest)  # nothing is near to what is not finite
    return codes.sub_(_LEAST).to(torch.uint8).T.contiguous().view(shape), scale.to(dtype).view(shape[:-1])


def _stored(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return scales as they are in `dtype`, none of them zero, in float32."""
    scale = scale.to(dtype).float()
    return torch.where(scale == 0, _smallest(dtype), scale)


def _coded(columns: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of columns of numbers, each by its scale, and the sum of what they are off, squared."""
    codes = (columns / scale).round_().clamp_(_LEAST, _MOST)
    return codes, torch.addcmul(columns, codes, scale, value=-1).square_().sum(0)


def _as_they_are(codes: Tensor) -> Tensor:
    return codes


def _packed(codes: Tensor) -> Tensor:
    """Return codes from 0 to 15 as bytes, as `CodedWeight` has them in rows."""
    lower, upper = codes.view(len(codes), -1, 2, _HALF).unbind(2)
    return (lower | upper << 4).view(len(codes), -1)
