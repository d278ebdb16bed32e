"""Compute in another dtype than the weights are stored in, and lay weights out so that they are read fast."""

from .blocks import Blocks, can_lay_out, product
from .compute_in import FAMILIES, compute_in
from .halving import Rounding, scaled_half, to_scaled_half
from .layout import Layout, blocks_of, lay_out, take_back
from .pages import give_back

__all__ = [
    "FAMILIES",
    "Blocks",
    "Layout",
    "Rounding",
    "blocks_of",
    "can_lay_out",
    "compute_in",
    "give_back",
    "lay_out",
    "product",
    "scaled_half",
    "take_back",
    "to_scaled_half",
]
