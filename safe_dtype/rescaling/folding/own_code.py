"""Whether the modules of a rescaled model still run the code that the rescale was proven with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_OURS = "safe_dtype."
_FORWARD = "forward"


@dataclass(frozen=True, eq=False, slots=True)
class _Code:
    """The forward of one module, as it was."""

    path: str
    module: nn.Module
    of_class: Callable[..., Any]
    of_its_own: Any  # in its `__dict__`; None where it has none

    def is_another(self) -> bool:
        """Whether the module runs another one now, which is none of ours."""
        kind, own = type(self.module), self.module.__dict__.get(_FORWARD)
        if own is not self.of_its_own and not type(own).__module__.startswith(_OURS):
            return True
        return kind.forward is not self.of_class and not kind.__module__.startswith(_OURS)


class OwnCode:
    """The forwards of modules as a rescale found them.

    A forward that is put into a module, or into its class, reads inputs and results of another size than they would be:
    one that adds a steering vector is wrong without a word.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self._codes = [
            _Code(path, module, type(module).forward, module.__dict__.get(_FORWARD)) for path, module in modules
        ]

    def replaced(self) -> str | None:
        """Return the path of a module whose forward is another one now; None where there is none."""
        return next((code.path for code in self._codes if code.is_another()), None)

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules."""
        return (code.module for code in self._codes)
