"""How far a candidate's outputs lie from those of its reference. Whether that is too far, `facts.exceeds` judges."""

from .checkpoint import Checkpoint
from .drift import drift_from, measure_drift, record_outputs
from .recording import Recording
from .texts import BUILT_IN_TEXT, random_batches, text_batches

__all__ = [
    "BUILT_IN_TEXT",
    "Checkpoint",
    "Recording",
    "drift_from",
    "measure_drift",
    "random_batches",
    "record_outputs",
    "text_batches",
]
