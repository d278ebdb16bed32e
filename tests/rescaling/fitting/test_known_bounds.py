"""What is computed from weights alone is known for every input, and needs no room above it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from engineered import engineered, prompts
from torch import Tensor, nn

from safe_dtype.rescaling import fit_to_half, gauges_for
from safe_dtype.rescaling.fitting.known_bounds import KnownBounds
from safe_dtype.rescaling.fitting.peaks import record_peaks

BF16 = torch.bfloat16


class Embedded(nn.Module):
    """Embeddings, and what models do with them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.tokens = nn.Embedding(8, 4).to(BF16)
        self.positions = nn.Embedding(8, 4).to(BF16)
        self.linear = nn.Linear(4, 4).to(BF16)
        self.register_buffer("scale", torch.tensor(3.0))
        with torch.no_grad():
            self.tokens.weight.fill_(1.0)
            self.tokens.weight[7] = -100.0  # a token that nobody passes
            self.positions.weight.fill_(2.0)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Compute."""
        embedded: Tensor = self.tokens(input_ids)
        if self.how == "scaled":
            return embedded * self.scale.to(BF16) * 2.0
        if self.how == "positions":
            return embedded + self.positions(torch.arange(input_ids.shape[1]).expand_as(input_ids))
        if self.how == "by an input":
            return embedded * input_ids.max().to(BF16)
        return self.linear(embedded) + embedded if self.how == "linear" else embedded.reshape(-1, 4)


@pytest.mark.parametrize(
    ("how", "largest"),
    [("plain", 100.0), ("scaled", 600.0), ("positions", 102.0), ("by an input", None), ("linear", None)],
)
def test_what_is_known(how: str, largest: float | None) -> None:
    """Rows that no input picked count; what another input makes larger is not known."""
    model = Embedded(how)
    peaks = record_peaks(model, [{"input_ids": torch.tensor([[1, 2, 3]])}], BF16)
    assert ("tokens", "aten.embedding.default") in peaks.known
    outside = {key: value for key, value in peaks.operations.items() if key[0] == ""}
    if largest is None:
        assert not outside.keys() <= peaks.known
    else:
        assert outside.keys() <= peaks.known
        assert max(peaks.operations.values()) == largest


def test_it_needs_no_room() -> None:
    """What is known is beyond a limit only where it does not fit into float16 itself."""
    for reach, fits in ((6.0e4, True), (6.6e4, False)):
        model = Embedded("plain")
        with torch.no_grad():
            model.tokens.weight[7, 0] = reach
        peaks = record_peaks(model, [{"input_ids": torch.tensor([[1, 2]])}], BF16)
        assert peaks.largest is not None
        assert (not peaks.beyond(100.0)) is fits


def test_bounds_end_with_their_tensors() -> None:
    """Nothing is remembered of a tensor that is gone: another one in its place has no bound."""
    model = Embedded("plain")
    bounds = KnownBounds(model)
    weight = model.tokens.weight
    bounds.note(torch.ops.aten.embedding.default, (weight, torch.tensor([1])), {}, weight[:1] * 1.0)
    assert bounds.of(weight) == 100.0
    assert bounds.of(torch.ones(1, 4, dtype=BF16)) is None


@pytest.mark.parametrize("reach", [2.09e4, 6.0e4])
def test_a_gemma_with_a_large_embedding(reach: float) -> None:
    """An embedding near the end of float16 is no reason to leave float16: it cannot go any further."""
    model: Any = engineered("gemma2")
    with torch.no_grad():
        model.model.embed_tokens.weight[300:310, 5] = reach / math.sqrt(model.config.hidden_size)
        model.model.norm.weight[5] = -1.0  # multiplies by 1 + that: its head, which is tied, does not see the channel
    model = model.to(BF16)
    batches = [*prompts("gemma2", count=2, tokens=24, seed=3), {"input_ids": torch.arange(296, 316)[None]}]
    half, _ = fit_to_half(model, batches, gauges_for(model).gauges)
    assert half.problem == ""
    assert half.islands == ()
    assert half.left * 4 <= 65504


def test_a_small_model_in_float16() -> None:
    """Also where nothing has to be rescaled for it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval().to(BF16)
    with torch.no_grad():
        model.model.embed_tokens.weight[9, 0] = 2.0e4
    half, _ = fit_to_half(model, [{"input_ids": torch.tensor([[1, 2, 3]])}], gauges_for(model).gauges)
    assert (half.problem, half.rescale, half.islands) == ("", None, ())
