"""Exact rescalings of a model by powers of two: found on a tiny twin of it, proven, fitted, folded in."""

from .discovery.discover import Found, gauges_for
from .fitting.bits import fit_to_half
from .folding.fold import Fold
from .folding.in_force import keep_rescaled
from .folding.prove import Effect, fold_in
from .folding.rescaled import Rescaled, rescaled_of
from .folding.taking_back import departures, dtype_left

__all__ = [
    "Effect",
    "Fold",
    "Found",
    "Rescaled",
    "departures",
    "dtype_left",
    "fit_to_half",
    "fold_in",
    "gauges_for",
    "keep_rescaled",
    "rescaled_of",
]
