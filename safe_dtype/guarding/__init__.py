"""Watch every step of a model; where the dtype fails under it, go on from the very step in another."""

from .classify import classify
from .failure import Attempt, Event, Failure, FailureKind, Report
from .guard import guard, report, unguard

__all__ = ["Attempt", "Event", "Failure", "FailureKind", "Report", "classify", "guard", "report", "unguard"]
