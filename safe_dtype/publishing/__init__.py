"""Put what was made and verified on the Hub: staged, checked, in one commit, and read back.

Importing this package imports neither torch nor the Hub's client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .release import Changes, Receipt, State, Target

if TYPE_CHECKING:
    from ..hub.client import Hub
    from .publish_variant import publish

__all__ = ["Changes", "Hub", "Receipt", "State", "Target", "publish"]

_LOADED_ON_USE = {"Hub": "..hub.client", "publish": ".publish_variant"}


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_USE:
        return getattr(import_module(_LOADED_ON_USE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
