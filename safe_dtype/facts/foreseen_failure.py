"""What will go wrong with a checkpoint, foreseen from its files."""

from __future__ import annotations

from dataclasses import dataclass

LOADING = "loading it will fail"
READING = "reading text with it will fail"  # its tokenizer is what fails: the model loads
LEAVING_OUT = "it will load, and leave weights out"  # as plain transformers does, which reports them as UNEXPECTED


@dataclass(frozen=True, slots=True)
class ForeseenFailure:
    """What will fail, and what to do about it."""

    problem: str
    advice: str
    consequence: str = LOADING

    @property
    def stops_loading(self) -> bool:
        """Whether there will be no model, not only a wrong one or one that does not talk."""
        return self.consequence == LOADING

    @property
    def stops_reading(self) -> bool:
        """Whether nobody will be able to give it text: there is no model, or no tokenizer."""
        return self.consequence in (LOADING, READING)

    @property
    def leaves_out(self) -> bool:
        """Whether the model is whole: only its files hold more."""
        return self.consequence == LEAVING_OUT

    @property
    def warning(self) -> str:
        """The failure as a plan warns of it."""
        return f"{self.consequence}: {self}"

    def __str__(self) -> str:
        return f"{self.problem}. Next: {self.advice}"
