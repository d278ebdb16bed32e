"""As what an output is compared: by what it decides where it holds logits, else by its numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASKED = -1e30  # a logit below it is a mask (-inf, or the smallest float32), not a number to be precise about
_KIND_BY_DIMENSIONS = {2: "classes", 3: "tokens", 4: "pixels"}


def kind_of_logits(logits: Tensor) -> str | None:
    """Return the kind of drift that is measured on logits of this shape; None where they have not 2 to 4 dimensions.

    Logits with one class only are "values": a softmax over one class is always 1, and would hide every difference.
    """
    kind = _KIND_BY_DIMENSIONS.get(logits.ndim)
    if kind is None:
        return None
    return kind if logits.shape[1 if kind == "pixels" else -1] > 1 else "values"


def kind_of(name: str, values: Tensor, *, by_sigmoid: bool = False) -> str:
    """Return the kind of drift that is measured on an output of this name and shape.

    `by_sigmoid`: The model decides each label for itself, and its logits of classes are "labels".

    Transformers calls logits so: at the end of a name (`start_logits`, `masks_queries_logits`) or at its beginning
    (`logits_per_image`); `pred_masks` hold logits as well. All else is a regression: boxes, depths, values, audio,
    embeddings.
    """
    if _holds_masks(name, values):
        return "pixels"
    kind = (_holds_logits(name) and kind_of_logits(values)) or "values"
    return "labels" if by_sigmoid and kind in ("classes", "tokens") else kind


def as_compared(
    name: str, expected: Tensor, output: Tensor, *, by_sigmoid: bool = False
) -> tuple[str, Tensor, Tensor]:
    """Return the kind of an output, and both sides of it, on the CPU and of one shape, as they are compared.

    NaN and infinities that both have at the same places are no difference, and are 0 in both; where the reference alone
    has one, the candidate gets a NaN, for it is infinitely far off. Masks of queries, like `masks_queries_logits` (batch,
    queries, height, width), are pixels with two classes each: inside of the mask and outside.
    """
    kind = kind_of(name, expected, by_sigmoid=by_sigmoid)
    expected, output = expected.float(), output.float()  # as a recording holds them
    if _holds_masks(name, expected):
        expected, output = _two_classes(expected), _two_classes(output)
    ruled_out = torch.zeros_like(expected, dtype=torch.bool)
    if kind != "values":
        # Legal in logits, but for a row of nothing else.
        ruled_out = (expected == -math.inf) & (expected > -math.inf).any(1 if kind == "pixels" else -1, keepdim=True)
    same = (expected.isnan() & output.isnan()) | (expected.isinf() & (expected == output))
    same |= (expected < MASKED) & (output < MASKED)  # the end of one range, say, and the infinity of another
    apart = ~expected.isfinite() & ~same & ~ruled_out
    same &= ~ruled_out
    return (
        kind,
        expected.masked_fill(same | apart, 0.0),
        output.masked_fill(same, 0.0).masked_fill(apart, math.nan),
    )


def two_classes_each(rows: Tensor) -> Tensor:
    """Return logits of labels (rows, labels), each decided for itself, as logits (rows * labels, 2): without and with it."""
    return torch.stack([torch.zeros_like(rows), rows], dim=-1).flatten(0, 1)


def as_real(values: Tensor) -> Tensor:
    """Return complex numbers as their real and imaginary parts, side by side; others as they are."""
    return torch.view_as_real(values.resolve_conj()).flatten(-2) if values.is_complex() else values


def _holds_logits(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last.endswith("logits") or last.startswith("logits_")


def _holds_masks(name: str, values: Tensor) -> bool:
    last = name.rpartition(".")[2]
    return values.ndim == 4 and "mask" in last and (_holds_logits(name) or last == "pred_masks")


def _two_classes(masks: Tensor) -> Tensor:
    """Return masks (batch, queries, height, width) as logits (batch * queries, 2, height, width)."""
    inside = masks.flatten(0, 1)[:, None]
    return torch.cat([torch.zeros_like(inside), inside], dim=1)
