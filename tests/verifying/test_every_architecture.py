"""Every architecture that can be made tiny drifts from itself by nothing."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from tiny_models import TINY
from zoo import ZOO

from safe_dtype import exceeds, measure_drift
from safe_dtype.verifying.result_fields import results_of


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_drifts_from_itself(name: str) -> None:
    """Every kind of architecture can be compared with itself in bfloat16."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    candidate = TINY[name].make().eval()
    candidate.load_state_dict(model.state_dict())
    drift = measure_drift(candidate.bfloat16(), model, [TINY[name].inputs()])
    assert 0 < drift.kl_mean < 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in ZOO if name != "encodec"])  # whose code books are empty as made
def test_every_head_of_every_architecture(name: str) -> None:
    """Whatever a model returns is compared: equal to itself, and infinitely far off with one NaN anywhere."""
    model, inputs = ZOO[name].born(torch.float32)
    output = model(**inputs)

    def drift_of(other: Any) -> Any:
        return measure_drift(lambda **_: other, lambda **_: output, [inputs])

    same = drift_of(output)
    assert exceeds(same, 0.0) is None
    for key, _ in results_of(output):
        spoiled = copy.deepcopy(output)
        tensor = dict(results_of(spoiled))[key]
        tensor[(0,) * tensor.dim()] = math.nan
        assert "NaN or infinity" in str(exceeds(drift_of(spoiled), math.inf)), key


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in ZOO if name not in ("encodec", "segformer", "vilt", "vits", "wav2vec2-pretraining")]
)  # do not repeat themselves
def test_every_architecture_in_bfloat16(name: str) -> None:
    """Rounded weights move every output, and make none of them infinite."""
    drift = measure_drift(ZOO[name].born(torch.bfloat16)[0], *ZOO[name].born(torch.float32)[:1], [ZOO[name].inputs()])
    assert all(math.isfinite(one.kl_mean) for one in (drift, *(head for _, head in drift.heads)))
    assert exceeds(drift, 0.0)
