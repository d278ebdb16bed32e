"""The ways into a guarded model: a call, `forward` by name, methods of its own, generate. Each is guarded, and once."""

from .own_forward import take_off_own
from .put_on import put_on

__all__ = ["put_on", "take_off_own"]
