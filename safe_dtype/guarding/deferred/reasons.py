"""May the steps of a decoding loop be judged later? One place decides, and says why not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.generation import logits_process, stopping_criteria
from transformers.generation import utils as generation_utils

from ...models.wrapped_methods import owner_of
from ..recover import is_passed_over
from ..shared_steps import is_spread
from ..state import CALL, Guard, here

# Of transformers, by name, for a class that is new may count its calls. These are functions of the tokens and the scores
# alone: run twice for one step they give the same.
_PROCESSORS = frozenset(
    (logits_process.__name__, name)
    for name in (
        "ClassifierFreeGuidanceLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor", "EpsilonLogitsWarper", "EtaLogitsWarper",
        "ExponentialDecayLengthPenalty", "ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor", "LogitNormalization", "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor", "MinPLogitsWarper", "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor", "TemperatureLogitsWarper",
        "TopHLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TypicalLogitsWarper",
        "WhisperTimeStampLogitsProcessor",
    )
)  # fmt: skip
_CRITERIA = frozenset(
    (stopping_criteria.__name__, name)
    for name in ("EosTokenCriteria", "MaxLengthCriteria", "MaxTimeCriteria", "StopStringCriteria")
)
# What the loop calls at each step.
COUNTS_IN = "_update_model_kwargs_for_generation"
_OF_THE_LOOP = ("_prefill", "_has_unfinished_sequences")
# The classes whose own way to count a step in changes the arguments of the loop alone, or leaves what the next time
# replaces: a step that failed is counted in twice. Others keep lists (Parakeet) or fetch the next piece of sound (Voxtral).
_COUNT_IN = frozenset(
    (f"transformers.models.{name}.modeling_{name}", class_name)
    for name, class_name in (
        ("idefics", "IdeficsForVisionText2Text"),
        ("mllama", "MllamaForConditionalGeneration"),
        ("moshi", "MoshiForConditionalGeneration"),
        ("paligemma", "PaliGemmaForConditionalGeneration"),
        ("qwen2_5_omni", "Qwen2_5OmniTalkerForConditionalGeneration"),
        ("qwen3_omni_moe", "Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration"),
        ("qwen3_omni_moe", "Qwen3OmniMoeTalkerForConditionalGeneration"),
    )
)
_ONE_PROCESS = (None, 0, 1)


def is_read_free(device: torch.device) -> bool:
    """Whether the host reads the memory of `device` without waiting for anything."""
    return device.type == "cpu"


def stops_late(device: torch.device) -> bool:
    """Whether transformers' loop learns one step late that it should stop, on this kind of device, as it does on mps."""
    late = getattr(generation_utils, "DeferredStopCheck", None)
    return late is not None and bool(late.is_supported(device, None, cache_is_returned=False, is_assistant=False))


@dataclass(frozen=True, slots=True)
class SamplingLoop:
    """What transformers' sampling loop is called with, beside the arguments of the model."""

    run: Callable[..., Any]  # the loop itself, `GenerationMixin._sample`
    model: nn.Module
    tokens: torch.Tensor  # of shape (batch, length)
    processors: Any  # of scores
    criteria: Any  # for the end
    config: Any  # the `GenerationConfig`
    synced_gpus: bool  # whether other processes take the same number of steps
    streamer: Any


def reason_to_look_at_once(guard: Guard, loop: SamplingLoop) -> str | None:
    """Return why each step of `loop` has to be looked at before anything is made of it; None: no need to.

    `guard` answers for the model of the loop.
    """
    return next(_reasons(guard, loop), None)


def _reasons(guard: Guard, loop: SamplingLoop) -> Iterator[str]:
    if is_read_free(loop.tokens.device):
        yield "a look costs nothing"
    if id(guard) not in here.nets or any(step[2] is CALL for step in here.running):
        yield "it is no generation of its own"
    if here.began_anew:
        yield "a step of it could not be run again"
    if not _is_known(loop):
        yield "its loop is not that of transformers"
    if not _may_count_in_twice(type(loop.model)):
        yield "the model counts its steps in a way of its own"
    if loop.synced_gpus or getattr(loop.model, "_tp_size", None) not in _ONE_PROCESS or is_spread(loop.model):
        yield "other processes take part in its steps"
    yield from _reasons_in_options(loop)
    if guard.own_modules or guard.own_steps or is_passed_over(guard):
        yield "the model makes NaN or Inf of its own"


def _reasons_in_options(loop: SamplingLoop) -> Iterator[str]:
    processors, criteria, config = loop.processors, loop.criteria, loop.config
    if config.is_assistant:
        yield "the loop around it is assisted decoding"
    if type(processors) is not logits_process.LogitsProcessorList or not _are_of(processors, _PROCESSORS):
        yield "a processor of scores may count its calls"
    if type(criteria) is not stopping_criteria.StoppingCriteriaList or not _are_of(criteria, _CRITERIA):
        yield "a criterion for the end may count its calls"
    if stops_late(loop.tokens.device) and config.return_dict_in_generate:
        yield "the loop runs one step beyond the last one"


def _is_known(loop: SamplingLoop) -> bool:
    model_class, function = type(loop.model), inspect.unwrap(loop.run)
    return (
        getattr(function, "__module__", None) == GenerationMixin.__module__
        and {*_OF_THE_LOOP, COUNTS_IN} <= {*function.__code__.co_names}  # before 5.0 a prompt went in in another way
        and all(owner_of(model_class, name) is GenerationMixin for name in ("_sample", *_OF_THE_LOOP))
        and not {*_OF_THE_LOOP, COUNTS_IN} & vars(loop.model).keys()
    )


def _may_count_in_twice(model_class: type) -> bool:
    """Whether a step that is counted in a second time leaves what it had left the first time."""
    owner = owner_of(model_class, COUNTS_IN)
    return owner is GenerationMixin or (owner is not None and (owner.__module__, owner.__name__) in _COUNT_IN)


def _are_of(entries: Any, classes: frozenset[tuple[str, str]]) -> bool:
    return all((type(entry).__module__, type(entry).__name__) in classes for entry in entries)
