"""A model's outputs as a plain dict of tensors."""

from __future__ import annotations

import pytest
import torch
from optimizing.form_models import Mlp

from safe_dtype.optimizing.graphs.flat import flat_outputs, outputs_of


def test_outputs_by_name() -> None:
    """Tensors of nested answers come out in order, by dotted name, each in its dtype; the rest stays out."""
    one, two, three = torch.zeros(1), torch.zeros(2), torch.ones(3, dtype=torch.bool)
    ids = torch.ones(1, dtype=torch.long)
    answer = {"logits": one, "ids": ids, "states": (two, [three]), "cache": object(), "length": 5}
    outputs = outputs_of(answer)
    assert list(outputs) == ["logits", "ids", "states.0", "states.1.0"]
    assert outputs["ids"] is ids
    assert outputs["states.1.0"] is three
    assert list(outputs_of(one)) == ["output"]
    assert list(outputs_of({"ids": ids})) == ["ids"]


@pytest.mark.parametrize(
    "answer",
    [{"cache": object()}, {}, (), torch.zeros(2, dtype=torch.complex64)],
    ids=["no-tensor", "no-entry", "nothing", "complex"],
)
def test_nothing_to_compare(answer: object) -> None:
    """An answer without a tensor that could be compared is an error."""
    with pytest.raises(TypeError, match="nothing to compare"):
        outputs_of(answer)


def test_forward_is_put_back() -> None:
    """Flattening a model's outputs for an export leaves nothing on the model."""
    model = Mlp()
    with flat_outputs(model):
        assert "forward" in vars(model)
    assert "forward" not in vars(model)
