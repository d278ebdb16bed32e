"""Random batches for the models of the zoo, from a seed, a number of rows and a size."""

from __future__ import annotations

from typing import Any

import torch

Inputs = dict[str, Any]
VOCABULARY = 97


def seeded(seed: int) -> torch.Generator:
    """Return a generator of random numbers."""
    return torch.Generator().manual_seed(seed)


def ids(seed: int, batch: int, length: int) -> torch.Tensor:
    """Return ids of shape (batch, length), none of them special."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=seeded(seed))


def text(seed: int, batch: int, length: int) -> Inputs:
    """Return a text."""
    return {"input_ids": ids(seed, batch, length)}


def text_pair(seed: int, batch: int, length: int) -> Inputs:
    """Return a text for the encoder and one of 5 tokens for the decoder."""
    return text(seed, batch, length) | {"decoder_input_ids": ids(seed + 100, batch, 5)}


def masked_text_pair(seed: int, batch: int, length: int) -> Inputs:
    """Return the same with masks of ones."""
    masks = {
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
        "decoder_attention_mask": torch.ones(batch, 5, dtype=torch.long),
    }
    return text_pair(seed, batch, length) | masks


def image(seed: int, batch: int, size: int) -> Inputs:
    """Return images, shape (batch, 3, 32 size, 32 size)."""
    return {"pixel_values": torch.randn(batch, 3, 32 * size, 32 * size, generator=seeded(seed))}
