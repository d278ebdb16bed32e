"""The weights that multiply, and the cache, of many architectures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import TINY

from safe_dtype.checkpoints import read_checkpoint
from safe_dtype.facts import BFLOAT16


@pytest.mark.parametrize("name", TINY)
def test_architectures(name: str, tmp_path: Path) -> None:
    """Parameters, shapes that multiply, ties and convolutions are read off the headers as the real model has them."""
    facts = read_checkpoint(TINY[name].save(tmp_path, torch.bfloat16))
    model = TINY[name].make()
    buffers = sum(tensor.numel for tensor in facts.tensors if "running" in tensor.name or "num_batches" in tensor.name)
    assert facts.saved == BFLOAT16
    assert facts.parameters - buffers == model.num_parameters()
    assert facts.architecture == type(model).__name__
    assert facts.model_type == model.config.model_type
    assert facts.has_conv2d == any(isinstance(one, torch.nn.Conv2d) for one in model.modules())
    output = model.get_output_embeddings()
    assert facts.tied == (output is not None and output.weight is model.get_input_embeddings().weight)
    plain = [one.weight.numel() for one in model.modules() if isinstance(one, torch.nn.Linear)]
    experts = [p.numel() for key, p in model.named_parameters() if p.ndim == 3 and "experts" in key]
    guessed = sum(one.numel for one in facts.linears)
    assert guessed == pytest.approx(sum(plain) + sum(experts), rel=0.2)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("qwen3", 2), ("t5", 2), ("mixtral", 2), ("llava", 2), ("mamba", 0), ("bert", 0), ("segformer", 0)],
)
def test_cache(name: str, layers: int, tmp_path: Path) -> None:
    """Decoders have a KV cache; encoders, recurrent models and vision have none."""
    assert read_checkpoint(TINY[name].save(tmp_path, torch.float16)).cache.layers == layers


def test_experts_are_partly_active(tmp_path: Path) -> None:
    """A token passes through the share of the experts that the config says."""
    facts = read_checkpoint(TINY["mixtral"].save(tmp_path, torch.float16))
    assert {one.active for one in facts.linears} == {1.0, 0.5}


def test_output_head_is_one_position(tmp_path: Path) -> None:
    """The tied head counts as a product, for the last position only."""
    facts = read_checkpoint(TINY["qwen3"].save(tmp_path, torch.float16))
    (head,) = (one for one in facts.linears if not one.per_position)
    assert (head.out_features, head.in_features) == (96, 32)
