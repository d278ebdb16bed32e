"""What may cure a failure: one file a remedy, tried in the order of `trial_order`."""

from .remedy import NotPossible, Proposal, Remedy
from .trial_order import Place, register_remedy, remedies_for

__all__ = ["NotPossible", "Place", "Proposal", "Remedy", "register_remedy", "remedies_for"]
