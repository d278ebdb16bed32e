"""Read the files of a model: headers and configs, never weights."""

from .read import read_checkpoint, read_state_dict
from .where import Where

__all__ = ["Where", "read_checkpoint", "read_state_dict"]
