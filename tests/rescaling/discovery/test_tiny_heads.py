"""A tiny model keeps the ratio of its heads."""

from __future__ import annotations

from functools import cache

import pytest
from rescaling.real_configs import REAL

from safe_dtype.rescaling.discovery.twin import Twin, make_twin


@cache
def twin_of(name: str) -> Twin:
    """Make each twin once: nothing here changes them."""
    return make_twin(REAL[name].model_class, REAL[name].config())


@pytest.mark.parametrize("name", [name for name, real in REAL.items() if real.heads])
def test_keeps_the_ratio_of_heads(name: str) -> None:
    """Query heads share key-value heads as in the real model."""
    config = twin_of(name).model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == REAL[name].heads
