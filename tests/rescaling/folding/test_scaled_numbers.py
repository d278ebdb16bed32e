"""A module tells by which power of two its numbers are multiplied."""

from __future__ import annotations

import copy

from torch import nn

from safe_dtype.rescaling.folding.scaled_numbers import exponent_of, scale_number


def test_multiplied_and_back() -> None:
    """Exponents add up; where nothing is multiplied nothing is left behind."""
    norm = nn.LayerNorm(4, eps=1e-5)
    before = dict(norm.__dict__)
    assert exponent_of(norm, "eps") == 0
    scale_number(norm, "eps", -12)
    scale_number(norm, "eps", -6)
    assert (norm.eps, exponent_of(norm, "eps")) == (1e-5 * 2.0**-18, -18)
    copied = copy.deepcopy(norm)
    scale_number(norm, "eps", 18)
    assert (norm.eps, exponent_of(norm, "eps")) == (1e-5, 0)
    assert norm.__dict__.keys() == before.keys()
    assert exponent_of(copied, "eps") == -18
