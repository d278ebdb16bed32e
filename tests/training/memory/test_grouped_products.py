"""Models of experts are followed in every dtype that they train in."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from safe_dtype.facts import BFLOAT16, FLOAT32, Dtype
from safe_dtype.training.memory import trace_step, traced_step

TOKENS = torch.arange(3, 35).view(2, 16)
BATCH = {"input_ids": TOKENS, "labels": TOKENS}


def experts() -> Qwen3MoeForCausalLM:
    """Make a tiny model of four experts in each layer, of which two take each token."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16, vocab_size=64, use_cache=False,
    )  # fmt: skip
    return Qwen3MoeForCausalLM(config).train()


def saved(model: Qwen3MoeForCausalLM, dtype: Dtype) -> int:
    """Return how many bytes a real forward pass keeps for the backward pass, beside the weights."""
    own = {one.untyped_storage()._cdata for one in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (storage := tensor.untyped_storage())._cdata not in own:
            seen[storage._cdata] = storage
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == BFLOAT16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        model(**BATCH)
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.needs("torch>=2.13")  # torch 2.6 groups no products on a CPU
@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_what_is_saved_for_backward(dtype: Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as a real pass keeps."""
    model = experts()
    assert trace_step(model, BATCH, dtype).is_of_operations
    monkeypatch.setattr(traced_step, "CAN_TRACK", False)
    assert dict(trace_step(model, BATCH, dtype).kinds)["activations"] == pytest.approx(saved(model, dtype), rel=0.02)


@pytest.mark.parametrize("kinds", [(2, 3), (3, 2), (2, 2), (3, 3)], ids=str)
def test_shapes(kinds: tuple[int, int]) -> None:
    """Each form of a grouped product has the shape that a real one has."""
    if not hasattr(torch, "_grouped_mm"):
        pytest.skip("this torch has no grouped products")
    groups, rows, inner, columns = 4, 16, 32, 16
    left = torch.ones(groups, rows, inner) if kinds[0] > 2 else torch.ones(rows, inner)
    right = torch.ones(groups, inner, columns) if kinds[1] > 2 else torch.ones(inner, columns)
    length = {(2, 3): rows, (3, 2): columns, (2, 2): inner}.get(kinds)
    offsets = None if length is None else torch.arange(1, groups + 1, dtype=torch.int32) * (length // groups)
    real = torch._grouped_mm(left, right, offs=offsets)
    with traced_step.FakeTensorMode() as mode, traced_step.GroupedProducts():
        fake = torch._grouped_mm(
            *(mode.from_tensor(one) for one in (left, right)),
            offs=None if offsets is None else mode.from_tensor(offsets),
        )
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
