"""Random numbers and tokens for a model, and what its config says of their sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from safe_dtype.rescaling.discovery.tiny_config import FIRST_TOKEN
from safe_dtype.rescaling.discovery.twin import configs_in

Inputs = dict[str, Any]

LENGTH = 12  # tokens


def noise(*shape: int) -> Tensor:
    """Return normal numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def setting(config: Any, *names: str, otherwise: Any = None) -> Any:
    """Return the first of these settings, of a config or of one within it."""
    parts = [vars(part) for part in configs_in(config)]
    settings = (part.get(name) for name in names for part in parts)
    return next((setting for setting in settings if setting not in (None, 0)), otherwise)


def tokens(model: Any, length: int, rows: int = 1) -> Tensor:
    """Return tokens, the same every time: none of them names anything special."""
    size = getattr(model.config.get_text_config(), "vocab_size", None) or 96
    size = size if isinstance(size, int) else 96
    random = torch.Generator().manual_seed(2)
    return torch.randint(min(FIRST_TOKEN, size - 1), size, (rows, length), generator=random)
