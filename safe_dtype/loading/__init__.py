"""Load models of transformers with a plan."""

from .auto import SafeAutoModel, safe_auto_class
from .load import load
from .plans import device_for, plan_request
from .request import Request

__all__ = [
    "Request",
    "SafeAutoModel",
    "device_for",
    "load",
    "plan_request",
    "safe_auto_class",
]
