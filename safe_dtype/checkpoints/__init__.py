"""Read the files of a model: headers and configs; `audit` alone reads the weights."""

from .audit.audit_weights import Audit, audit
from .read import read_checkpoint, read_state_dict

__all__ = ["Audit", "audit", "read_checkpoint", "read_state_dict"]
