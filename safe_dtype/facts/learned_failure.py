"""What an experiment has taught: a failure of a text that nobody knew, and the dtypes in which it does not occur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class LearnedFailure:
    """A failure that no text told of. Dtypes are names; personal paths are replaced, but for that of `checkpoint`."""

    family: str  # `model_type` of the config, or the class of the model
    op: str  # the class of the module that failed, and the function in it
    dtype: str  # in which it failed
    device: str  # "cuda:0"
    module: str | None  # as in `named_modules()`
    error: str  # the class of the exception
    text: str
    works_in: tuple[str, ...] = ()  # the dtypes in which the module passed, best first
    trials: tuple[str, ...] = ()  # each as a line
    # Whose later loads it counts for: a folder's whole path, or a repository; None: for no load.
    checkpoint: str | None = field(default=None, repr=False)
    launch: str | None = field(default=None, repr=False)  # the job of ranks that it ended while training

    def __str__(self) -> str:
        text = f": {self.text}" if self.text else ""
        return f"{self.op} of {self.family} raised {self.error} in {self.dtype}{text}"

    @property
    def cause(self) -> str:
        """What raised what, in a line."""
        text = f": {self.text.strip().partition(chr(10))[0]}" if self.text.strip() else ""
        return f"{self.op} raised {self.error}{text}"

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> LearnedFailure:
        """Return what `as_dict` was made of.

        Raises:
            KeyError: If something is missing.
        """
        names = ("family", "op", "dtype", "device", "module", "error", "text")
        texts = {name: entry[name] for name in names}
        return cls(
            **texts,
            works_in=tuple(entry["works_in"]),
            trials=tuple(entry["trials"]),
            checkpoint=entry.get("checkpoint"),
            launch=entry.get("launch"),
        )
