"""How far one run's outputs lie from another's, and whether that is more than rounding can explain.

Two questions are answered here, with limits that were measured: is a form exact, as far as its dtype allows, and does a
dtype only round? The limit that a user sets with `max_drift` is another question: see `max_drift`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...facts import BFLOAT16, FLOAT16, FLOAT32, Dtype
from ..nouns.record import Distance

INFINITELY_FAR = Distance(max_abs=math.inf, relative=math.inf, cosine=-1.0)
NO_DISTANCE = Distance(max_abs=0.0, relative=0.0, cosine=1.0)

# The largest `relative` by which a form may differ from eager in the same dtype. Measured on seven forms of sapiens2,
# SegFormer, UPerNet and Mask2Former with random weights: compiled float32 stays below 2e-6, bfloat16 below 3e-2,
# float16 below 4e-3; a trace that took the wrong branch of JetMoe or Longformer is 1e-2 to 7e-2 off in every dtype,
# which is why a form is also to be judged in float32.
LARGEST_RELATIVE = {FLOAT32: 1e-4, FLOAT16: 1e-2, BFLOAT16: 5e-2}


@dataclass(frozen=True, slots=True)
class ChoiceLimits:
    """How far choices may differ. A figure that a distance lacks is not judged."""

    top1_agreement: float  # at least
    miou: float  # at least
    kl: float  # at most, in nats


# On the user's data. Each figure is that of the worst batch, so one choice of 128 that flips is 0.8 %. Measured on
# trained models in eager, against float32: a language model of 1 M parameters on text has 0.969 and 1.3e-4 nats in
# bfloat16, 1.0 and 2e-6 in float16; a SegFormer trained on rectangles has a mean IoU of 0.964 in bfloat16 on held-out
# inputs and 0.990 in float16, in maps of 1,024 pixels. Random mixtures of experts, where a token that goes elsewhere
# changes everything after it, reach 8.6e-3 nats in bfloat16, 1.4e-3 in float16. Sound forms in float32 flip nothing.
DATA_LIMITS = {
    FLOAT32: ChoiceLimits(top1_agreement=0.9999, miou=0.999, kl=1e-5),
    FLOAT16: ChoiceLimits(top1_agreement=0.99, miou=0.98, kl=2e-3),
    BFLOAT16: ChoiceLimits(top1_agreement=0.95, miou=0.95, kl=1e-2),
}

# Where a model chooses (an expert, the queries' masks), a rounding can change a few positions altogether: measured in
# eager on random Mixtral, Dbrx, JetMoe, Switch and Mask2Former, up to 0.7 of the largest output in bfloat16 and 0.5 in
# float16, while the outputs as a whole agree: a cosine from 0.986, 8.6e-3 nats at most, a mean IoU from 0.868. With
# noise as large as its output added to one convolution or linear layer, nine models were off by more than
# `LARGEST_RELATIVE` (or by next to nothing), and each then missed at least one of these three.
FEW_COSINE = 0.985
# A cosine does not see a wrong scale, and neither do first choices. A few positions hardly change the norm of the
# whole; what is larger or smaller everywhere by more than a rounding in bfloat16 is wrong.
FEW_SCALE = 1.05
FEW = ChoiceLimits(top1_agreement=0.0, miou=0.85, kl=1e-2)  # first choices have no limit: 5 of 20 queries changed


def distance_between(
    outputs: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], *, by_sigmoid: bool = False
) -> Distance:
    """Return the worst distance over the outputs, each compared with the reference's output of the same name, in float64.

    Outputs with other names or other shapes are infinitely far apart. Integers and booleans are compared entry by entry
    (`equal_entries`), and must have the reference's dtype: how far one id is from another says nothing.

    Outputs whose name ends in "logits" stand for choices. `top1_agreement` is the share of equal ones: over dimension 1
    of 4-dimensional logits (batch, classes, height, width), over the last of all others. `kl` is the mean over the
    positions of 2- and 3-dimensional ones, padded ones included, in nats. `miou` is the mean over the classes that
    either side gives to a pixel; of masks (batch, queries, height, width), like `masks_queries_logits`, over the
    queries that either side sees anywhere. Where labels are decided `by_sigmoid`, each label of 2- and 3-dimensional
    logits is a choice of its own, between two classes.
    """
    if outputs.keys() != reference.keys() or not reference:
        return INFINITELY_FAR
    worst = NO_DISTANCE
    for name, expected in reference.items():
        worst = worst.worse(_distance_of_one(name, outputs[name], expected, by_sigmoid=by_sigmoid))
    return worst


def form_problem(distance: Distance, dtype: Dtype) -> str:
    """Return why a form differs from eager in the same dtype by more than rounding; empty where it does not.

    In float32 only rounding may differ. In 16 bit a few positions may differ by any amount as long as the whole agrees:
    a form that is right in float32 rounds in another way there, and tokens go to other experts. That is why a form must
    be judged in float32 first.
    """
    return _rounding_problem(distance, dtype, "eager")


def dtype_problem(distance: Distance, dtype: Dtype) -> str:
    """Return why eager in `dtype` differs from eager in float32 by more than rounding; empty where it does not.

    The rule is that of `form_problem`. It applies where the user sets no `max_drift`.
    """
    return _rounding_problem(distance, dtype, "float32")


def _rounding_problem(distance: Distance, dtype: Dtype, reference: str) -> str:
    if problem := _broken(distance, reference) or entries_problem(distance.equal_entries, dtype):
        return problem
    too_far = _size_problem(distance, dtype, reference)
    if not too_far or dtype not in (FLOAT16, BFLOAT16):
        return too_far
    if distance.cosine < FEW_COSINE:
        return f"{too_far}; more is allowed where few positions differ, but the cosine is {distance.cosine:.3f}"
    if distance.scale > FEW_SCALE:
        return f"{too_far}; more is allowed where few positions differ, but one is {distance.scale:.3g} times as large"
    choices = _choice_problem(distance, FEW)
    return f"{too_far}; more is allowed where few positions differ, but {choices}" if choices else ""


def data_problem(distance: Distance, dtype: Dtype) -> str:
    """Return why a dtype differs from float32 by more than rounding on the user's own data; empty where it does not.

    Where the outputs stand for choices, the choices are judged: a logit that is never chosen may be far off. Other
    outputs are judged by their size, as in `dtype_problem`. It applies where the user sets no `max_drift`.
    """
    if problem := _broken(distance, "the reference") or entries_problem(distance.equal_entries, dtype):
        return problem
    if distance.top1_agreement is None and distance.miou is None and distance.kl is None:
        return dtype_problem(distance, dtype)
    problem = _choice_problem(distance, DATA_LIMITS.get(dtype, DATA_LIMITS[FLOAT32]))
    return f"on the user's data it differs from float32 by more than rounding: {problem} in {dtype}" if problem else ""


def entries_problem(share: float | None, dtype: Dtype) -> str:
    """Return why too few entries of integers and masks are those of the reference; empty where enough are, or None.

    Most of them are choices, and rounding decides a tie: as many may differ as first choices may on the user's data.
    """
    limit = DATA_LIMITS.get(dtype, DATA_LIMITS[FLOAT32]).top1_agreement
    if share is None or share >= limit:
        return ""
    return f"its integers and masks agree in {share:.2%} of their entries; at least {limit:.2%} must in {dtype}"


def equal_entries(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the share of the same entries of two tensors of one shape; 1 where there are none."""
    return float((output.cpu() == expected.cpu()).double().mean()) if expected.numel() else 1.0


def _broken(distance: Distance, reference: str) -> str:
    """Return why rounding cannot explain this distance; empty where it may."""
    if distance.nonfinite:
        return f"{distance.nonfinite:,} values are NaN or infinite where {reference}'s are finite"
    if math.isinf(distance.max_abs):
        return f"its outputs have other names, shapes or dtypes than {reference}'s, or are finite where {reference}'s are not"
    return ""


def _size_problem(distance: Distance, dtype: Dtype, reference: str) -> str:
    limit = LARGEST_RELATIVE.get(dtype, LARGEST_RELATIVE[FLOAT32])
    if distance.relative <= limit:
        return ""
    difference = f"{distance.relative:.2g} of the largest output; {limit:g} is allowed in {dtype}"
    return f"it differs from {reference} by more than rounding: by {difference}"


def _choice_problem(distance: Distance, limits: ChoiceLimits) -> str:
    if distance.top1_agreement is not None and distance.top1_agreement < limits.top1_agreement:
        return f"the first choice agrees in {distance.top1_agreement:.2%}; at least {limits.top1_agreement:.2%} must"
    if distance.miou is not None and distance.miou < limits.miou:
        return f"the mean IoU is {distance.miou:.4f}; {limits.miou:g} is the least"
    if distance.kl is not None and not distance.kl <= limits.kl:
        return f"the KL divergence is {distance.kl:.2g} nats; {limits.kl:g} is the most"
    return ""


def _distance_of_one(name: str, output: torch.Tensor, expected: torch.Tensor, *, by_sigmoid: bool) -> Distance:
    whole = not (output.is_floating_point() and expected.is_floating_point())
    if output.shape != expected.shape or (whole and output.dtype != expected.dtype):
        return INFINITELY_FAR
    if whole:
        return replace(NO_DISTANCE, equal_entries=equal_entries(output, expected))
    if not expected.numel():
        return NO_DISTANCE
    a, b = output.detach().cpu().double(), expected.detach().cpu().double()
    choices = _choices(name, a, b, by_sigmoid=by_sigmoid)
    same = (a == b) | (a.isnan() & b.isnan())  # also where both are infinite: masked logits often are
    nonfinite = int((~a.isfinite() & ~same).sum())
    if bool((a.isfinite() & ~b.isfinite()).any()):
        return Distance(math.inf, math.inf, -1.0, nonfinite=nonfinite, **choices)
    both = a.isfinite() & b.isfinite()
    a, b = a[both], b[both]
    if not b.numel():
        return Distance(0.0, 0.0, 1.0, nonfinite=nonfinite, **choices)
    max_abs, largest = float((a - b).abs().max()), float(b.abs().max())
    relative = max_abs / largest if largest else (math.inf if max_abs else 0.0)
    return Distance(max_abs, relative, _cosine(a, b), nonfinite=nonfinite, scale=_scale(a, b), **choices)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.equal(a, b):
        return 1.0  # also of zeros, whose cosine is not defined
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else 0.0


def _scale(a: torch.Tensor, b: torch.Tensor) -> float:
    smaller, larger = sorted((float(a.norm()), float(b.norm())))
    if smaller == larger:
        return 1.0  # also of zeros
    return larger / smaller if smaller else math.inf


def _choices(name: str, a: torch.Tensor, b: torch.Tensor, *, by_sigmoid: bool) -> dict[str, Any]:
    """Return how far the choices that logits stand for differ: `top1_agreement`, `kl`, `miou`."""
    if not name.endswith("logits") or b.dim() < 2:
        return {}
    if b.dim() == 4 and "mask" in name:
        # For each query, which pixels belong to it: a pixel may belong to several queries, or to none.
        queries = 1 + torch.arange(b.shape[1])[:, None, None]
        return {"miou": _miou((a > 0) * queries, (b > 0) * queries, ignored=0)}
    classes = 1 if b.dim() == 4 else b.dim() - 1
    if b.shape[classes] < 2:
        return {}  # a single number, which is no choice
    if by_sigmoid and b.dim() in (2, 3):
        a, b = (torch.stack([torch.zeros_like(one), one], -1).flatten(0, -2) for one in (a, b))
        classes = 1
    chosen, expected = a.argmax(classes), b.argmax(classes)
    figures: dict[str, Any] = {"top1_agreement": float((chosen == expected).double().mean())}
    if b.dim() in (2, 3):
        figures["kl"] = _kl(a.flatten(0, -2), b.flatten(0, -2))
    if b.dim() == 4:
        figures["miou"] = _miou(chosen, expected)
    return figures


def _kl(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Return the mean over rows of KL(b || a) in nats; None where no row of the reference is a distribution."""
    # Imported here, because it loads transformers: a child that runs a plain module starts sooner without.
    from ...verifying.compare import compare_logits
    from ...verifying.positions import chunks

    rows = (~b.isnan().any(1) & (b < math.inf).all(1) & (b > -math.inf).any(1)).nonzero().flatten()
    total = sum(float(compare_logits(b[part], a[part], None).kl.sum()) for part in chunks(rows, b.shape[1]))
    return total / len(rows) if len(rows) else None


def _miou(chosen: torch.Tensor, expected: torch.Tensor, ignored: int | None = None) -> float | None:
    """Return the mean IoU over the classes that either side chooses, without `ignored`; None where there are none."""
    classes = 1 + int(torch.maximum(chosen.max(), expected.max()))
    shared, in_chosen, in_expected = (
        part.flatten().bincount(minlength=classes) for part in (chosen[chosen == expected], chosen, expected)
    )
    union = in_chosen + in_expected - shared
    if ignored is not None:
        union[ignored] = 0
    occurs = union > 0
    return float((shared[occurs] / union[occurs].double()).mean()) if bool(occurs.any()) else None
