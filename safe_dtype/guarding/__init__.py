"""Watch every step of a model; where the dtype fails under it, go on from the very step in another."""

from .classify import classify
from .events import on_event
from .failure import Attempt, Event, Failure, FailureKind, Report
from .guard import guard, report, unguard
from .incident import Incident
from .registration import Registration
from .remedies import NotPossible, Remedy, register_remedy

__all__ = [
    "Attempt",
    "Event",
    "Failure",
    "FailureKind",
    "Incident",
    "NotPossible",
    "Registration",
    "Remedy",
    "Report",
    "classify",
    "guard",
    "on_event",
    "register_remedy",
    "report",
    "unguard",
]
