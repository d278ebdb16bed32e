"""Training that goes on: another precision in the middle of a run, and no step lost."""

from .switch_precision import precision_of, switch_precision

__all__ = ["precision_of", "switch_precision"]
