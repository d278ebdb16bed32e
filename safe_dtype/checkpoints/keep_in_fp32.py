"""The weights that transformers keeps in float32 when it loads a model in 16 bit."""

from __future__ import annotations

from collections.abc import Iterable


def kept_in_float32(architecture: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns kept under float16 alone, and those kept under bfloat16 too, of an architecture's class.

    Only the class's own lists: those of sub-models are gathered by transformers when the model is built. They count
    for the prediction of memory; what is loaded is transformers' own affair.
    """
    import transformers

    model_class = getattr(transformers, architecture or "", None)
    sometimes: Iterable[str] | None = getattr(model_class, "_keep_in_fp32_modules", None)
    always: Iterable[str] | None = getattr(model_class, "_keep_in_fp32_modules_strict", None)
    return tuple(sorted(sometimes or ())), tuple(sorted(always or ()))
