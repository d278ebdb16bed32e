"""Plan and guard every model that transformers loads, without a change to the code that loads it. Imports no torch."""

from .switch import patch, patched, unpatch

__all__ = ["patch", "patched", "unpatch"]
