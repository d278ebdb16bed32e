"""What the user wants of an optimization. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...facts import Dtype
from .job import Dynamic


@dataclass(frozen=True, slots=True)
class Goal:
    """What the user wants of an optimization."""

    form: str | None = None  # None: the fastest that is verified
    dtype: Dtype | None = None  # None: the fastest that passes
    dynamic: Dynamic = field(default_factory=Dynamic)
    torchscript: bool = False  # whether a trace may be tried: deprecated, and blind to branches
    max_drift: float | None = None  # of every dtype and form, see `exceeds`; None: rounding alone is allowed
    seconds: float = 900.0  # the most for one attempt
    device: str | None = None  # None: the first accelerator, else the CPU
    threads: int | None = None  # of torch in the children; None leaves its choice
    keep: bool = False  # whether the files of every verified attempt stay, and not the winner's alone
    via: str = ""  # "optimum-onnx": let that make the ONNX file, in an environment of its own
    task: str = ""  # optimum's name of the task, where the config does not say it
    revision: str | None = None  # a branch, tag or commit on the Hub
