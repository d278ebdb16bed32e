"""Raise the scale of a rescaled model, unless that makes its results worse than a step to another dtype would."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import AutoTokenizer

from ..errors import NothingToCompareError, RescaleError, VerifyError
from ..facts import Drift, exceeds
from ..models.islands import Island
from ..models.origin import known_origin
from ..models.shift_hooks import Shift, shifted_modules
from ..numerics import running_in
from ..verifying.outputs import Outputs, evaluating, outputs_of
from ..verifying.positions import alignment_of
from ..verifying.tally import Tally
from ..verifying.texts import random_batches, text_batches
from .folding.in_force import Rescaled
from .folding.prove import RUN_FAILURES

logger = logging.getLogger(__name__)

# Of one weight, RMS: by as much bfloat16 rounds each number at most, and what loses more is no gain over it.
_MOST_LOST = 2.0**-8
_TOKENS, _BATCHES = 64, 2
_WHERE = ("revision", "cache_dir", "token", "subfolder", "trust_remote_code", "code_revision")

Batches = Sequence[Mapping[str, Any]]


def raise_checked(model: Any, rescaled: Rescaled, more: int, max_drift: float) -> None:
    """Raise the scale of `model`, in float16, by `more` bits. Where that is not worth it the model is as it was.

    It moves the smallest weights and activations of every text below float16's range, and for good. So what an ordinary
    text drifts by is measured, against the same weights in float32 before any raise: it has to stay within `max_drift`,
    and within what bfloat16 would do to that text. Costs three runs of 128 tokens, and no copy of the weights.

    Raises:
        RescaleError: If weights would lose too much, the drift is too large, or it cannot be measured.
    """
    before = rescaled.raised
    try:
        rescaled.raise_bits(more)
        _check_weights(rescaled)
        rescaled.raise_bits(-rescaled.raised)
        with _measuring(model):
            batches = ordinary_batches(model)
            truth = _outputs(model, batches, torch.float32)
            bfloat16 = _drift(model, truth, _outputs(model, batches, torch.bfloat16), batches)
            rescaled.raise_bits(before + more)
            drift = _drift(model, truth, _outputs(model, batches), batches)
        if reason := exceeds(drift, min(max_drift, _largest_limit(bfloat16))):
            raise RescaleError(f"ordinary text drifts with it: {reason}")
    except BaseException as exc:
        rescaled.raise_bits(before - rescaled.raised)
        if isinstance(exc, (*RUN_FAILURES, VerifyError)) and not isinstance(exc, RescaleError):
            raise RescaleError(f"what it does to ordinary text cannot be measured ({exc})") from exc
        raise


def ordinary_batches(model: Any) -> Batches:
    """Return batches of one row: of a text where the model's tokenizer is at hand, else of random tokens."""
    config = model.config
    text = config.get_text_config()
    length = min(_TOKENS, getattr(text, "max_position_embeddings", None) or _TOKENS)
    batches = _of_a_text(model, length) or random_batches(text.vocab_size, tokens_per_batch=length, batches=_BATCHES)
    if config.is_encoder_decoder:
        return [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in batches]
    return batches


def _of_a_text(model: Any, length: int) -> Batches:
    origin = known_origin(model)
    if origin is None or origin.source is None:
        return ()
    where = {name: origin.arguments[name] for name in _WHERE if origin.arguments.get(name) is not None}
    try:
        tokenizer = AutoTokenizer.from_pretrained(origin.source, **where, local_files_only=True)
        batches = text_batches(tokenizer, tokens_per_batch=length, batches=_BATCHES)
    except (*RUN_FAILURES, OSError, ImportError, NothingToCompareError) as exc:  # of any tokenizer's own code
        logger.debug("%s: no tokenizer at hand (%s): random tokens are run", origin.source, exc)
        return ()
    vocabulary = model.config.get_text_config().vocab_size
    return () if any(int(batch["input_ids"].max()) >= vocabulary for batch in batches) else batches


def _check_weights(rescaled: Rescaled) -> None:
    name, lost = rescaled.fold.largest_loss()
    if not lost <= _MOST_LOST:
        raise RescaleError(f"{name} would lose {lost:.2g} of its size (RMS) below float16's range")


def _outputs(model: Any, batches: Batches, dtype: torch.dtype | None = None) -> list[Outputs]:
    with _computing_in(model, dtype) if dtype is not None else nullcontext():
        return [outputs_of(model, batch) for batch in batches]


def _drift(model: Any, truth: Sequence[Outputs], outputs: Sequence[Outputs], batches: Batches) -> Drift:
    tally = Tally(alignment_of(model))
    for expected, ours, batch in zip(truth, outputs, batches, strict=True):
        tally.add(expected, ours, batch)
    return tally.drift()


def _largest_limit(drift: Drift) -> float:
    """Return the smallest limit that `drift` is within, as far as its mean goes."""
    return drift.rel_rms if drift.kind == "values" else drift.kl_mean


@contextmanager
def _measuring(model: Any) -> Iterator[None]:
    """Run the model without dropout and compiled forms, and not in kernels that take 16 bit alone."""
    attention = str(getattr(model.config, "_attn_implementation", ""))
    try:
        if "flash" in attention:
            model.set_attn_implementation("sdpa")
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if "flash" in attention:
            model.set_attn_implementation(attention)


@contextmanager
def _computing_in(model: Any, dtype: torch.dtype) -> Iterator[None]:
    """Compute in `dtype` what the model computes in float16; hooks that cast to float16 and back are told."""
    hooks: list[Shift | Island] = [shift for _, _, shift in shifted_modules(model)]
    hooks += [
        hook for module in model.modules() for hook in module._forward_hooks.values() if isinstance(hook, Island)
    ]
    before = [hook.outside for hook in hooks]
    try:
        for hook in hooks:
            hook.outside_is_now(dtype)
        with running_in(dtype, torch.float16):
            yield
    finally:
        for hook, outside in zip(hooks, before, strict=True):
            hook.outside = outside
