"""Training that goes on: another precision in the middle of a run, and no step lost."""

from .float32_masters import float32_masters
from .precision_guard import PrecisionGuard
from .switch_precision import precision_of, switch_precision
from .torch_loop import TorchLoop

__all__ = ["PrecisionGuard", "TorchLoop", "float32_masters", "precision_of", "switch_precision"]
