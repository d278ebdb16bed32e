"""Load models of transformers with a plan."""

from .auto import SafeAutoModel, safe_auto_class
from .load import Origin, load, origin_of, plan_of
from .plans import device_for, plan_request
from .request import Request

__all__ = [
    "Origin",
    "Request",
    "SafeAutoModel",
    "device_for",
    "load",
    "origin_of",
    "plan_of",
    "plan_request",
    "safe_auto_class",
]
