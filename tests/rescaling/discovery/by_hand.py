"""A small residual network in float64 of which every exact rescaling can be written down by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput


class Norm(nn.Module):
    """An RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(6) + 0.5), 1e-6

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (..., 6) to the same shape."""
        return hidden * (hidden.square().mean(-1, keepdim=True) + self.eps) ** -0.5 * self.weight


class Block(nn.Module):
    """A norm and a two-layer network, beside which the hidden state goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = Norm()
        self.up, self.down = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (..., 6) to the same shape."""
        return hidden + self.down(self.up(self.norm(hidden)).relu())


class NormedBlock(Block):
    """One that hands on what its norm returns."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden (..., 6) to the same shape."""
        return self.norm(hidden + self.down(self.up(hidden).relu()))


class Network(nn.Module):
    """An embedding, two blocks, a norm and a head."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.layers = nn.ModuleList(block() for _ in range(2))
        self.norm, self.head = Norm(), nn.Linear(6, 5, bias=False)

    def forward(self, input_ids: Tensor) -> ModelOutput:
        """Tokens (rows, tokens) to logits (rows, tokens, 5)."""
        hidden = self.embed(input_ids)
        for block in self.layers:
            hidden = block(hidden)
        return ModelOutput(logits=self.head(self.norm(hidden)))


def network(block: type[nn.Module] = Block) -> Any:
    """Return one with random weights."""
    torch.manual_seed(0)
    return Network(block).double().eval().requires_grad_(requires_grad=False)


BATCHES = tuple({"input_ids": torch.tensor(ids)} for ids in ([[0, 1, 2, 3]], [[4, 5, 6, 7]]))
