"""Measure the machine: which devices there are, and what each dtype really does on them.

Importing this package imports no torch; the functions that need it load it on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .priors import prior_facts

if TYPE_CHECKING:
    from .inventory import default_device, detect, detect_one
    from .learned import checkpoint_key, learned_on, lessons_for, remember_learned
    from .memory import memory_of, shortage
    from .observed import remember_failure
    from .probing.probe import DEFAULT_OPS, DEFAULT_WIDTHS, measure, routes_of
    from .survey import facts_of

__all__ = [
    "DEFAULT_OPS",
    "DEFAULT_WIDTHS",
    "checkpoint_key",
    "default_device",
    "detect",
    "detect_one",
    "facts_of",
    "learned_on",
    "lessons_for",
    "measure",
    "memory_of",
    "prior_facts",
    "remember_failure",
    "remember_learned",
    "routes_of",
    "shortage",
]

_LOADED_ON_USE = {
    "DEFAULT_OPS": "probing.probe",
    "DEFAULT_WIDTHS": "probing.probe",
    "checkpoint_key": "learned",
    "default_device": "inventory",
    "detect": "inventory",
    "detect_one": "inventory",
    "facts_of": "survey",
    "learned_on": "learned",
    "lessons_for": "learned",
    "measure": "probing.probe",
    "memory_of": "memory",
    "shortage": "memory",
    "remember_failure": "observed",
    "remember_learned": "learned",
    "routes_of": "probing.probe",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LOADED_ON_USE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
