"""Raise the scale of a rescaled model, unless that makes its results worse than a step to another dtype would."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoTokenizer

from ..errors import NothingToCompareError, RescaleError, VerifyError
from ..errors.of_the_moment import is_of_the_moment
from ..facts import Drift, Rescale, exceeds
from ..models.islands import Island
from ..models.origin import known_origin
from ..models.shift_hooks import Shift, settle_norms, shifted_modules
from ..models.undo_log import UndoLog
from ..numerics import running_in, uncompiled
from ..verifying.outputs import Outputs, evaluating, outputs_of
from ..verifying.positions import alignment_of
from ..verifying.tally import Tally
from ..verifying.texts import random_batches, text_batches
from .folding.fold import Fold
from .folding.prove import RUN_FAILURES, Effect, fold_in
from .folding.rescaled import Rescaled
from .lost_bits import require_little_lost

logger = logging.getLogger(__name__)

_TOKENS, _BATCHES = 64, 2
_WHERE = ("revision", "cache_dir", "token", "subfolder", "trust_remote_code", "code_revision")

Batches = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class OrdinaryText:
    """A short text, and what a model in float16 computes of it with nothing but its weights rounded."""

    batches: Batches
    truth: Sequence[Outputs]  # everything that is no weight in float32
    bfloat16: Drift  # everything that is no weight in bfloat16

    @classmethod
    def run(cls, model: Any) -> OrdinaryText:
        """Run `model`, in float16, on a text. Costs two runs of 128 tokens, and no copy of the weights.

        Raises:
            RescaleError: If it cannot be run so.
        """
        with _measuring(model):
            batches = ordinary_batches(model)
            truth = _outputs(model, batches, torch.float32)
            return cls(batches, truth, _drift(model, truth, _outputs(model, batches, torch.bfloat16), batches))

    def too_far(self, model: Any, max_drift: float) -> str | None:
        """Return why what `model` computes of the text now is beyond `max_drift`, or beyond what bfloat16 would make of it.

        Raises:
            RescaleError: If it cannot be run.
        """
        with _measuring(model):
            drift = _drift(model, self.truth, _outputs(model, self.batches), self.batches)
        reason = exceeds(drift, min(max_drift, _mean(self.bfloat16)))
        return f"ordinary text drifts with it: {reason}" if reason else None


def raise_checked(model: Any, rescaled: Rescaled, more: int, max_drift: float) -> str | None:
    """Raise the scale of `model`, in float16, by `more` bits; return why not, where ordinary text gets worse by it.

    A raise moves the smallest weights and activations of every text below float16's range, and for good. So what a text
    drifts by is measured: against the same weights in float32, before any raise.

    Raises:
        RescaleError: If weights lose too much, or the drift cannot be measured. Whatever is not raised is as it was.
    """
    before = rescaled.raised
    try:
        rescaled.raise_bits(more)
        check_weights(rescaled.fold)
        rescaled.raise_bits(-rescaled.raised)
        text = OrdinaryText.run(model)
        rescaled.raise_bits(before + more)
        reason = text.too_far(model, max_drift)
    except BaseException:  # an interrupt as well
        rescaled.raise_bits(before - rescaled.raised)
        raise
    if reason:
        rescaled.raise_bits(-more)
    return reason


def rescale_checked(
    model: Any, rescale: Rescale, max_drift: float, *, keeps_cache: bool, log: UndoLog
) -> tuple[Fold, Effect]:
    """Fold `rescale` into `model`, which is in float16 and overflows: prove it in float32, and measure as for a raise.

    Args:
        model: Its norms go to float32 where they get a shift.
        rescale: What its architecture allows.
        max_drift: Of ordinary text.
        keeps_cache: Whether what earlier steps cached has to stay right.
        log: Gets what takes it back, bit for bit.

    Raises:
        RescaleError: As `fold_in` and `raise_checked` do, and if ordinary text gets worse by it. The model is as it was.
    """
    text = OrdinaryText.run(model)
    norms = [(one, one.data) for one in model.parameters() if one.dim() <= 1]
    fold, effect = fold_in(model, rescale, computing=computing_as(model, torch.float32))
    settle_norms(model, torch.float16)
    try:
        if keeps_cache and not effect.keeps_cache:
            raise RescaleError("what earlier steps cached would not fit to it")
        check_weights(fold)
        if reason := text.too_far(model, max_drift):
            raise RescaleError(reason)
    except BaseException:
        _unfold(fold, norms)
        raise
    log.add(functools.partial(_unfold, fold, norms))
    return fold, effect


def _unfold(fold: Fold, norms: Sequence[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
    fold.undo()
    for parameter, data in norms:
        parameter.data = data


def check_weights(fold: Fold) -> None:
    """Check that no weight has lost more in float16 than bfloat16 would round it by.

    Raises:
        RescaleError: If one has.
    """
    for name, lost in fold.losses().items():
        require_little_lost(name, lost)


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


def _outputs(model: Any, batches: Batches, dtype: torch.dtype | None = None) -> list[Outputs]:
    with computing_as(model, dtype) if dtype is not None else nullcontext():
        return [outputs_of(model, batch) for batch in batches]


def _drift(model: Any, truth: Sequence[Outputs], outputs: Sequence[Outputs], batches: Batches) -> Drift:
    tally = Tally(alignment_of(model))
    for expected, ours, batch in zip(truth, outputs, batches, strict=True):
        tally.add(expected, ours, batch)
    return tally.drift()


def _mean(drift: Drift) -> float:
    """Return the figure that a limit is compared with."""
    return drift.rel_rms if drift.kind == "values" else drift.kl_mean


@contextmanager
def _measuring(model: Any) -> Iterator[None]:
    """Run the model without dropout and compiled forms, and not in kernels that take 16 bit alone.

    Raises:
        RescaleError: In place of whatever modelling code raises.
    """
    attention = str(getattr(model.config, "_attn_implementation", ""))
    try:
        if "flash" in attention:
            model.set_attn_implementation("sdpa")
        with evaluating(model), uncompiled():
            yield
    except (*RUN_FAILURES, VerifyError) as exc:
        if is_of_the_moment(exc):
            raise
        raise RescaleError(f"what it does to ordinary text cannot be measured ({exc})") from exc
    finally:
        if "flash" in attention:
            model.set_attn_implementation(attention)


@contextmanager
def computing_as(model: Any, dtype: torch.dtype) -> Iterator[None]:
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
