"""What a remedy is: one change of a model that may cure a failure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ..incident import Incident


class NotPossible(Exception):  # noqa: N818  (no error: an answer, with its reason)
    """This remedy cannot be applied, or it changed nothing. Its text is the reason that errors and reports print."""


class Remedy(Protocol):
    """One change of a model. Its `str` names it in events and errors.

    Equal remedies count as the same one, and none is tried twice on one failing step: write a frozen dataclass, or
    propose the same object every time.
    """

    @property
    def changes_dtype(self) -> bool:
        """Whether it brings the whole model into another dtype.

        Strict mode names these remedies in its error, and a dtype that the user asked for is given up with a warning.
        """

    def apply(self, incident: Incident) -> int:
        """Change the model, prove that it changed, and return by how many bytes it grew.

        No step of the model runs meanwhile. Afterwards the failed step runs again.

        Raises:
            NotPossible: If the model cannot be changed so. It must be as it was then.
        """

    def undo(self, incident: Incident) -> None:
        """Take the change back: the module that it was applied for failed again at once.

        `incident` is the second failure. A remedy that may stay where it is of no use, and one that a further remedy
        builds on (a model in another dtype), leaves everything as it is here.
        """


# The remedies of one kind that may cure this failure, best first; None as well where there are none.
Proposal = Callable[[Incident], Iterable[Remedy] | None]
