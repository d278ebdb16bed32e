"""Compare rows of a reference with the same rows of a candidate: pure functions of float64 tensors (rows, width)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .output_kinds import MASKED
from .positions import NO_TARGET

NOT_FINITE = -1  # the class that a row with NaN or +Inf in it gets
# A first choice is clear where it is ahead by a quarter of the spread of its row, and by an eighth of its largest logit.
# Rounding in bfloat16 moves the logits of deep models by 1 to 2 % of that.
_CLEAR_SPREAD, _CLEAR_LARGEST = 0.25, 0.125


@dataclass(frozen=True, slots=True)
class Compared:
    """The figures of a few rows. Tensors have one element a row."""

    kl: Tensor  # KL(reference || candidate) in nats, +inf where the candidate is not finite
    reference_best: Tensor  # index of the largest element
    candidate_best: Tensor  # ... NOT_FINITE where the candidate is not finite
    max_abs: float
    squared_difference: float  # summed over all elements
    squared_reference: float
    reference_nll: float = 0.0  # -log p(target) in nats, summed over the rows that have a target
    candidate_nll: float = 0.0
    targets: int = 0
    reference_nats: float = 0.0  # KL(reference || uniform), summed over the rows
    # Rows whose first choice differs, though the reference's was clearly ahead of the candidate's.
    clear_flips: int = 0


def compare_logits(
    reference: Tensor, candidate: Tensor, target: Tensor | None, clear: Tensor | None = None
) -> Compared:
    """Compare two sets of logits as distributions.

    Logits that the reference masks (below -1e30) have no probability, and no difference is taken there.

    Args:
        reference: Shape (rows, classes): finite, or -inf as a mask; at least one finite in every row.
        candidate: Same shape; anything.
        target: The right class of every row, or NO_TARGET; None where there are none.
        clear: By how much a first choice is ahead where it is clear, one number a row; None: `clear_margins`.
    """
    broken = ~(candidate < math.inf).all(1) | (candidate == -math.inf).all(1)
    log_p, log_q = reference.log_softmax(1), candidate.log_softmax(1)
    p = log_p.exp()
    # Where p is 0 the term is 0, even where log p is -inf. A sum below 0 is rounding: KL is none.
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1).clamp_min(0).masked_fill(broken, math.inf)
    compared = _compare(reference, candidate, kl, broken)
    clear = clear_margins(reference) if clear is None else clear
    chosen = reference.gather(1, compared.candidate_best.clamp_min(0)[:, None])[:, 0]
    compared = replace(
        compared,
        reference_nats=float(_nats(reference, p, log_p).sum()),
        clear_flips=int((broken | (reference.amax(1) - chosen > clear)).sum()),
    )
    if target is None:
        return compared
    right = target.clamp_min(0)[:, None]
    candidate_log, reference_log = log_q.gather(1, right)[:, 0], log_p.gather(1, right)[:, 0]
    candidate_log = candidate_log.masked_fill(broken, -math.inf)
    # A target that the reference itself rules out tells nothing about the candidate.
    judged = (target != NO_TARGET) & (reference_log > MASKED)
    return replace(
        compared, reference_nll=-float(reference_log[judged].sum()), candidate_nll=-float(candidate_log[judged].sum()),
        targets=int(judged.sum()),
    )  # fmt: skip


def clear_margins(reference: Tensor, *, by_sigmoid: bool = False) -> Tensor:
    """Return for each row of logits by how much a first choice is ahead where it is clear; 0 where one class is left.

    `by_sigmoid`: Each label is decided for itself, against 0: its distance from 0 counts, on the scale of its row.
    """
    shown = reference >= MASKED
    counts = shown.sum(1).clamp_min(1)
    values = torch.where(shown, reference, 0.0)
    if by_sigmoid:
        return _CLEAR_SPREAD * (values.square().sum(1) / counts).sqrt()
    around = torch.where(shown, values - (values.sum(1) / counts)[:, None], 0.0)
    spread = (around.square().sum(1) / counts).sqrt()
    return torch.maximum(_CLEAR_SPREAD * spread, _CLEAR_LARGEST * values.abs().amax(1))


def compare_values(reference: Tensor, candidate: Tensor) -> Compared:
    """Compare two sets of vectors. There is no distribution: KL is 0, and +inf where the candidate is not finite."""
    broken = ~candidate.isfinite().all(1)
    kl = torch.zeros(len(reference), dtype=torch.float64).masked_fill(broken, math.inf)
    return _compare(reference, candidate, kl, broken)


def cosines(reference: Tensor, candidate: Tensor) -> Tensor:
    """Return the cosine of each pair of rows: exactly 1 for equal rows, 0 where one is zero or not finite."""
    products = (_unit(reference) * _unit(candidate)).sum(1).clamp(-1, 1).nan_to_num(nan=0.0)
    return torch.where((reference == candidate).all(1), 1.0, products)


def _nats(reference: Tensor, p: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(reference || uniform) of each row, over the classes that it does not mask."""
    counts = (reference >= MASKED).sum(1).double()
    return (counts.log() + torch.where(p > 0, p * log_p, 0.0).sum(1)).clamp_min(0)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _compare(reference: Tensor, candidate: Tensor, kl: Tensor, broken: Tensor) -> Compared:
    masked = reference < MASKED
    # Equal infinities differ by nothing, where subtraction says NaN; every other NaN is as far off as can be.
    difference = torch.where(masked | (reference == candidate), 0.0, candidate - reference).abs()
    difference = difference.nan_to_num(nan=math.inf, posinf=math.inf)
    return Compared(
        kl=kl,
        reference_best=reference.argmax(1),
        candidate_best=candidate.argmax(1).masked_fill(broken, NOT_FINITE),
        max_abs=float(difference.max()),
        squared_difference=float(difference.square().sum()),
        squared_reference=float(torch.where(masked, 0.0, reference).square().sum()),
    )
