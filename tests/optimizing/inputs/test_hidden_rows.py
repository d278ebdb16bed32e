"""Masks that hide a row whole."""

from __future__ import annotations

import pytest
import torch

from safe_dtype.optimizing.inputs.hidden_rows import hides_a_row


@pytest.mark.parametrize(
    ("name", "tensor", "hides"),
    [
        pytest.param("attention_mask", torch.tensor([[1, 0], [0, 1]]), False, id="padded"),
        pytest.param("attention_mask", torch.tensor([[True, True], [False, False]]), True, id="a-row"),
        pytest.param("pixel_mask", torch.eye(3, dtype=torch.long)[None], False, id="a-picture"),
        pytest.param("pixel_mask", torch.zeros(1, 3, 3, dtype=torch.long), True, id="no-picture"),
        pytest.param("attention_mask", torch.tensor([[[[1, 0], [0, 0]]]]), True, id="a-position"),
        pytest.param("attention_mask", torch.zeros(2, 2), None, id="added-to-scores"),
        pytest.param("input_ids", torch.zeros(2, 2, dtype=torch.long), None, id="no-mask"),
        pytest.param("mask", torch.zeros(2, dtype=torch.long), None, id="one-number-a-row"),
    ],
)
def test_hides_a_row(name: str, tensor: torch.Tensor, hides: bool | None) -> None:
    """A row of a text, a picture or a position that may look at nothing; other inputs have no answer."""
    assert hides_a_row(name, tensor) is hides
