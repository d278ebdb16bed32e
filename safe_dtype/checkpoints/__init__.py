"""Read the files of a model: headers and configs; `audit` alone reads the weights."""

from .audit import Audit, audit
from .read import read_checkpoint, read_state_dict
from .where import Where

__all__ = ["Audit", "Where", "audit", "read_checkpoint", "read_state_dict"]
