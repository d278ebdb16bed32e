"""A copy of weights in float32 that stands in for them, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from tiny_models import TINY
from torch import nn

from safe_dtype.numerics.float32_copy import Float32Copy, bytes_of_copy, refuses_copy


def test_it_stands_in_for_the_weights() -> None:
    """In the block the model is in float32, tied weights are one, and outside it every tensor is the one it was."""
    model = TINY["qwen3"].make().to(torch.bfloat16)
    before = [(name, id(weight)) for name, weight in model.named_parameters()]
    copy = Float32Copy(model)
    with copy.in_force():
        assert model.lm_head.weight.dtype == torch.float32
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model(**TINY["qwen3"].inputs()).logits.dtype == torch.float32
    assert [(name, id(weight)) for name, weight in model.named_parameters()] == before


def test_it_follows_what_is_trained() -> None:
    """A weight that was changed since is copied again."""
    layer = nn.Linear(2, 2, dtype=torch.bfloat16)
    copy = Float32Copy(layer)
    with torch.no_grad():
        layer.weight.add_(1)
    with copy.in_force():
        trained = layer.weight
    assert torch.equal(trained, layer.weight.float())


def test_an_exception_leaves_the_weights_in_place() -> None:
    """Whatever ends the block."""
    layer = nn.Linear(2, 2, dtype=torch.float16)
    with pytest.raises(KeyError), Float32Copy(layer).in_force():
        raise KeyError
    assert isinstance(layer.weight, nn.Parameter)


def test_its_bytes() -> None:
    """Four for every number in 16 bits, tied weights once, and none for what is in float32 already."""
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4))
    assert bytes_of_copy(nn.Sequential(*model, model[0])) == {torch.device("cpu"): 4 * 20}
    assert bytes_of_copy(nn.Linear(4, 4)) == {}


def test_what_has_no_copy() -> None:
    """Weights of a class of their own, as those that ranks share, are refused."""

    class Sharded(nn.Parameter):
        pass

    layer = nn.Linear(2, 2, dtype=torch.bfloat16)
    assert refuses_copy(layer) is None
    layer.weight = Sharded(layer.weight)
    assert "weight is a Sharded" in str(refuses_copy(layer))
