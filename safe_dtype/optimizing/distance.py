"""How far one run's outputs lie from another's, and whether that is too far for a form of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ..dtypes import BFLOAT16, FLOAT16, FLOAT32, Dtype
from .record import Distance

INFINITELY_FAR = Distance(max_abs=math.inf, relative=math.inf, cosine=-1.0)
NO_DISTANCE = Distance(max_abs=0.0, relative=0.0, cosine=1.0)

# The largest `relative` by which a form may differ from eager in the same dtype. Measured on seven forms of sapiens2,
# SegFormer, UPerNet and Mask2Former with random weights: compiled float32 stays below 2e-6, bfloat16 below 3e-2,
# float16 below 4e-3; a trace that took the wrong branch of JetMoe or Longformer is 1e-2 to 7e-2 off in every dtype,
# which is why a form is also to be judged in float32.
LARGEST_RELATIVE = {FLOAT32: 1e-4, FLOAT16: 1e-2, BFLOAT16: 5e-2}


def distance_between(outputs: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> Distance:
    """Return the worst distance over the outputs, each held against the reference's output of the same name.

    Other names or other shapes are infinitely far apart. Both sides are compared in float64. The top choice of logits
    is taken over dimension 1 of 4-dimensional ones (batch, classes, height, width), over the last of all others.
    """
    if outputs.keys() != reference.keys() or not reference:
        return INFINITELY_FAR
    worst = NO_DISTANCE
    for name, expected in reference.items():
        worst = worst.worse(_of_one(name, outputs[name], expected))
    return worst


def form_problem(distance: Distance, dtype: Dtype) -> str:
    """Return why a form is too far from eager in the same dtype; empty where it is not."""
    if distance.nonfinite:
        return f"{distance.nonfinite:,} values are NaN or infinite where eager's are finite"
    if math.isinf(distance.max_abs):
        return "its outputs have other names or shapes than eager's, or are finite where eager's are not"
    limit = LARGEST_RELATIVE.get(dtype, LARGEST_RELATIVE[FLOAT32])
    if distance.relative > limit:
        return (
            f"it differs from eager by {distance.relative:.2g} of the largest output; {limit:g} is allowed in {dtype}"
        )
    return ""


def _of_one(name: str, found: torch.Tensor, expected: torch.Tensor) -> Distance:
    if found.shape != expected.shape:
        return INFINITELY_FAR
    if not expected.numel():
        return NO_DISTANCE
    a, b = found.detach().cpu().double(), expected.detach().cpu().double()
    agreement = _top1_agreement(a, b) if name.endswith("logits") else None
    same = (a == b) | (a.isnan() & b.isnan())  # also where both are infinite: masked logits often are
    nonfinite = int((~a.isfinite() & ~same).sum())
    if bool((a.isfinite() & ~b.isfinite()).any()):
        return Distance(math.inf, math.inf, -1.0, agreement, nonfinite)
    both = a.isfinite() & b.isfinite()
    a, b = a[both], b[both]
    if not b.numel():
        return Distance(0.0, 0.0, 1.0, agreement, nonfinite)
    max_abs, largest = float((a - b).abs().max()), float(b.abs().max())
    relative = max_abs / largest if largest else (math.inf if max_abs else 0.0)
    return Distance(max_abs, relative, _cosine(a, b), agreement, nonfinite)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.equal(a, b):
        return 1.0  # also of zeros, whose cosine is not defined
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def _top1_agreement(a: torch.Tensor, b: torch.Tensor) -> float | None:
    classes = 1 if b.dim() == 4 else b.dim() - 1
    if b.dim() < 2 or b.shape[classes] < 2:
        return None
    return float((a.argmax(classes) == b.argmax(classes)).double().mean())
