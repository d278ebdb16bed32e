"""Compute in another dtype than the weights are stored in, and lay weights out so that they are read fast."""

from .block_product import Blocks, can_lay_out, product
from .compute_in import FAMILIES, compute_in, in_storage_dtype
from .pages import give_back
from .running_in import running_in
from .to_half import as_half
from .uncompiled import uncompiled

__all__ = [
    "FAMILIES",
    "Blocks",
    "as_half",
    "can_lay_out",
    "compute_in",
    "give_back",
    "in_storage_dtype",
    "product",
    "running_in",
    "uncompiled",
]
