"""Load models of transformers with a plan."""

from .auto import SafeAutoModel, safe_auto_class
from .half import half_of
from .load import load
from .plans import checkpoint_for, device_for, plan_request
from .request import Request

__all__ = [
    "Request",
    "SafeAutoModel",
    "checkpoint_for",
    "device_for",
    "half_of",
    "load",
    "plan_request",
    "safe_auto_class",
]
