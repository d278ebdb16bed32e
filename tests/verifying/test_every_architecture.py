"""Every architecture that can be made tiny drifts from itself by nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY

from safe_dtype import measure_drift


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_drifts_from_itself(name: str) -> None:
    """Every kind of architecture can be compared with itself in bfloat16."""
    torch.manual_seed(0)
    model = TINY[name].make().eval()
    candidate = TINY[name].make().eval()
    candidate.load_state_dict(model.state_dict())
    drift = measure_drift(candidate.bfloat16(), model, [TINY[name].inputs()])
    assert 0 < drift.kl_mean < 0.01
