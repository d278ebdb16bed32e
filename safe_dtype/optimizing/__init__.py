"""Find the fastest verified form of a model, and keep a log of everything that was tried.

Importing this package imports no torch: the command reads its nouns before it knows what is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .nouns.form import Form
from .nouns.job import Dynamic
from .nouns.record import Optimization, Status
from .nouns.record_file import read_record

if TYPE_CHECKING:
    from .optimize_model import optimize
    from .serving.optimized import Optimized, load_optimized

__all__ = ["Dynamic", "Form", "Optimization", "Optimized", "Status", "load_optimized", "optimize", "read_record"]

_LOADED_ON_USE = {
    "Optimized": "serving.optimized",
    "load_optimized": "serving.optimized",
    "optimize": "optimize_model",
}


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_USE:
        return getattr(import_module(f".{_LOADED_ON_USE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
