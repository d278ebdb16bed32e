"""Exact rescalings of a model by powers of two: found on a tiny twin of it, proven, fitted, folded in."""

from .discovery.discover import Found, gauges_for
from .fitting.bits import fit_to_half
from .folding.fold import Fold
from .folding.in_force import Rescaled, keep_rescaled, rescaled_of
from .folding.prove import Effect, fold_in

__all__ = [
    "Effect",
    "Fold",
    "Found",
    "Rescaled",
    "fit_to_half",
    "fold_in",
    "gauges_for",
    "keep_rescaled",
    "rescaled_of",
]
