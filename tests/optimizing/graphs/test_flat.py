"""A model's outputs as a plain dict of float tensors."""

from __future__ import annotations

import pytest
import torch
from optimizing.form_models import Mlp

from safe_dtype.optimizing.graphs.flat import flat_outputs, outputs_of


def test_outputs_by_name() -> None:
    """Float tensors of nested answers come out in order, by dotted name; the rest stays out."""
    one, two, three = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    answer = {"logits": one, "ids": torch.ones(1, dtype=torch.long), "states": (two, [three]), "cache": object()}
    assert list(outputs_of(answer)) == ["logits", "states.0", "states.1.0"]
    assert list(outputs_of(one)) == ["output"]
    with pytest.raises(TypeError, match="nothing to compare"):
        outputs_of({"ids": torch.ones(1, dtype=torch.long)})


def test_forward_is_put_back() -> None:
    """Flattening a model's outputs for an export leaves nothing on the model."""
    model = Mlp()
    with flat_outputs(model):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
