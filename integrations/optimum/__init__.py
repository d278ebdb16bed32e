"""ONNX by Hugging Face's optimum, which needs an older transformers: in an environment of its own, verified by us.

Importing this package imports no torch.
"""

from .attempting import FORM, attempt_via
from .exporting import Order, export
from .older import as_before_5, copied_for_4
from .tasks import TASKS, task_of
from .virtual_environment import VIAS, environment, pins_of

__all__ = [
    "FORM",
    "TASKS",
    "VIAS",
    "Order",
    "as_before_5",
    "attempt_via",
    "copied_for_4",
    "environment",
    "export",
    "pins_of",
    "task_of",
]
