"""What kind of failure the trials show, in the words in which remedies are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ...facts import Dtype
from ..classify import text_of
from ..failure import Failure, FailureKind
from .findings import Findings


def failure_shown(
    findings: Findings, by_text: Failure | None, error: BaseException, now: Dtype | None, modules: list[nn.Module]
) -> Failure | None:
    """Return the failure to cure; None where no trial passed, and the text tells of nothing else that may help.

    Args:
        findings: What the trials showed.
        by_text: What the text tells; None for one that nobody knows.
        error: The exception.
        now: The dtype of the model.
        modules: The modules that it passed through. Where one is an attention, another kernel of it may help.
    """
    if by_text is None:
        kind = _kind_of(findings, modules)
        return Failure(kind, text_of(error) or type(error).__name__, now) if kind is not None else None
    if not findings.dtypes:
        return by_text
    # What has passed is neither what failed, nor left out by what the text allows.
    dtype = by_text.dtype if by_text.dtype not in findings.dtypes else now
    allowed = by_text.allowed if set(by_text.allowed) & set(findings.dtypes) else ()
    return replace(by_text, dtype=dtype, allowed=allowed)


def _kind_of(findings: Findings, modules: list[nn.Module]) -> FailureKind | None:
    if findings.aligned:
        return FailureKind.DTYPE_MISMATCH
    if findings.without_onednn:
        return FailureKind.KERNEL_ARCH
    if findings.dtypes:
        return FailureKind.OP_UNSUPPORTED
    if findings.is_conclusive and any(_chooses_a_kernel(module) for module in modules):
        return FailureKind.KERNEL_ARCH
    return None


def _chooses_a_kernel(module: Any) -> bool:
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    return "Attention" in type(module).__name__ and implementation not in (None, "eager")
