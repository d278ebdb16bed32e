"""The ways into a guarded model: a call, `forward` by name, methods of its own, generate. Each is guarded, and once."""

from .nesting import is_covered
from .put_on import put_on

__all__ = ["is_covered", "put_on"]
