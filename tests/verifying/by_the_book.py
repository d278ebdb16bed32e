"""The figures of a drift, computed plainly in float64 with everything in memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import TINY

from safe_dtype import Drift

Batches = list[dict[str, Any]]


def tiny(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """Return a tiny random model; the same weights every time, up to the dtype."""
    torch.manual_seed(0)
    return TINY[name].make().eval().to(dtype)


def plain_figures(reference: torch.Tensor, candidate: torch.Tensor) -> dict[str, float]:
    """Compare logits of shape (rows, classes) as a textbook would."""
    a, b = reference.double().numpy(), candidate.double().numpy()
    p, q = (np.exp(one - one.max(1, keepdims=True)) for one in (a, b))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kl = (p * np.log(p / q)).sum(1)
    return {
        "positions": len(a),
        "kl_mean": kl.mean(),
        "kl_p99": np.quantile(kl, 0.99, method="inverted_cdf"),
        "top1_agreement": (a.argmax(1) == b.argmax(1)).mean(),
        "max_abs": np.abs(a - b).max(),
        "rel_rms": math.sqrt(((a - b) ** 2).mean() / (a**2).mean()),
    }


def check(drift: Drift, expected: dict[str, float], *, but: tuple[str, ...] = ()) -> None:
    """Hold a drift to the plain figures."""
    for name, value in expected.items():
        if name not in but:
            assert getattr(drift, name) == pytest.approx(value, rel=1e-7, abs=1e-14), name


def logits_of(model: Any, batches: Batches) -> list[torch.Tensor]:
    """Run all batches and keep everything."""
    with torch.inference_mode():
        return [model(**one).logits.float() for one in batches]
