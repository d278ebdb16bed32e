"""The rescale in force is kept with its model alone, and forgotten with it."""

from __future__ import annotations

from rescaling.folding.changes import rescued

from safe_dtype.rescaling import rescaled_of
from safe_dtype.rescaling.folding.rescaled import forget_rescaled, keep_in


def test_kept_with_its_model() -> None:
    """It is found on the model that was rescaled, and not on what is inside."""
    model = rescued("llama")
    kept = rescaled_of(model)
    assert kept is not None
    assert kept.fold.model is model
    assert rescaled_of(model.model) is None
    forget_rescaled(model)
    assert rescaled_of(model) is None
    keep_in(model, kept)
    assert rescaled_of(model) is kept


def test_too_many_and_too_few_bits() -> None:
    """What was added is known, and taken off again."""
    kept = rescaled_of(rescued("llama"))
    assert kept is not None
    before = kept.rescale
    kept.raise_bits(3)
    assert (kept.raised, kept.rescale == before) == (3, False)
    kept.raise_bits(-3)
    assert (kept.raised, kept.rescale) == (0, before)
