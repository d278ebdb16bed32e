"""What the trials of a failed module showed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ...facts import Dtype


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a module on the inputs on which it had failed."""

    name: str  # "in float32"
    module: str | None  # as in `named_modules()`
    outcome: str  # "passed", or what it raised

    def __str__(self) -> str:
        return f"{self.module or 'the model'} {self.name}: {self.outcome}"


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a failure after its trials.

    Attributes:
        module: The innermost module that fails as it is and passes otherwise; None where no trial passed.
        dtypes: In which other dtypes it passed.
        failed: In which it was tried and failed, or the module around it.
        aligned: Whether it passes with its inputs in the dtype of its weights.
        without_onednn: Whether it passes in its own dtype with oneDNN turned off: with other kernels of the CPU.
        without_autocast: Whether it passed in float32 only with the caller's autocast turned off.
        is_conclusive: Whether the trials could be run. Where they could not, nothing is known but the text.
        trials: All of them, in their order.
    """

    module: nn.Module | None = None
    dtypes: tuple[Dtype, ...] = ()
    failed: tuple[Dtype, ...] = ()
    aligned: bool = False
    without_onednn: bool = False
    without_autocast: bool = False
    is_conclusive: bool = True
    trials: tuple[Trial, ...] = ()

    @property
    def is_hopeful(self) -> bool:
        """Whether another dtype, or another kernel, may cure the failure."""
        return self.aligned or self.without_onednn or bool(self.dtypes) or not self.is_conclusive

    def may_work(self, dtype: Dtype) -> bool:
        """Whether nothing speaks against this dtype for the whole model."""
        return not self.is_conclusive or (self.is_hopeful and dtype not in self.failed)
