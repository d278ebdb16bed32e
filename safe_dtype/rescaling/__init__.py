"""Exact rescalings of a model by powers of two: found on a tiny twin of it, proven, fitted, folded in."""

from .blocks import block_names
from .discover import Found, gauges_for
from .fit import fit_to_half
from .fold import Fold
from .fold_in import Effect, fold_in
from .rescaled import Rescaled, keep_rescaled, rescaled_of
from .shifts import norms_in_float32, settle_norms, shifted_modules

__all__ = [
    "Effect",
    "Fold",
    "Found",
    "Rescaled",
    "block_names",
    "fit_to_half",
    "fold_in",
    "gauges_for",
    "keep_rescaled",
    "norms_in_float32",
    "rescaled_of",
    "settle_norms",
    "shifted_modules",
]
