"""Load models of transformers with a plan."""

from .auto import SafeAutoModel, safe_auto_class
from .foreseen import explained, foreseen, foreseen_in_all
from .load import load
from .plan_request import checkpoint_for, device_for, plan_request
from .request import Request
from .trials.float16 import half_of

__all__ = [
    "Request",
    "SafeAutoModel",
    "checkpoint_for",
    "device_for",
    "explained",
    "foreseen",
    "foreseen_in_all",
    "half_of",
    "load",
    "plan_request",
    "safe_auto_class",
]
