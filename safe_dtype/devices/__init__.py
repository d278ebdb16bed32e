"""Measure the machine: which devices there are, and what each dtype really does on them.

Importing this package imports no torch; the functions that need it load it on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .priors import prior_facts

if TYPE_CHECKING:
    from .inventory import default_device, detect, detect_one
    from .memory import memory_of
    from .observed import remember_failure
    from .probing.probe import DEFAULT_OPS, DEFAULT_WIDTHS, measure, routes_of
    from .survey import facts_of

__all__ = [
    "DEFAULT_OPS",
    "DEFAULT_WIDTHS",
    "default_device",
    "detect",
    "detect_one",
    "facts_of",
    "measure",
    "memory_of",
    "prior_facts",
    "remember_failure",
    "routes_of",
]

_LOADED_ON_USE = {
    "DEFAULT_OPS": "probing.probe",
    "DEFAULT_WIDTHS": "probing.probe",
    "default_device": "inventory",
    "detect": "inventory",
    "detect_one": "inventory",
    "facts_of": "survey",
    "measure": "probing.probe",
    "memory_of": "memory",
    "remember_failure": "observed",
    "routes_of": "probing.probe",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LOADED_ON_USE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
