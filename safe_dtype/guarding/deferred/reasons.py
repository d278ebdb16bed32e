"""May the steps of a decoding loop be judged later? One place decides, and says why not."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.generation import logits_process, stopping_criteria
from transformers.generation import utils as generation_utils

from ...models.wrapped_methods import owner_of
from ..recover import is_passed_over
from ..state import CALL, Guard, here

# Of transformers, by name, for a class that is new may count its calls. These are functions of the tokens and the scores
# alone: run twice for one step they give the same.
_PROCESSORS = frozenset(
    {
        "ClassifierFreeGuidanceLogitsProcessor", "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor", "EpsilonLogitsWarper", "EtaLogitsWarper",
        "ExponentialDecayLengthPenalty", "ForcedBOSTokenLogitsProcessor", "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor", "LogitNormalization", "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor", "MinPLogitsWarper", "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor", "SuppressTokensLogitsProcessor", "TemperatureLogitsWarper",
        "TopHLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TypicalLogitsWarper",
        "WhisperTimeStampLogitsProcessor",
    }
)  # fmt: skip
_CRITERIA = frozenset({"EosTokenCriteria", "MaxLengthCriteria", "MaxTimeCriteria", "StopStringCriteria"})
_OF_THE_LOOP = ("_sample", "_prefill", "_has_unfinished_sequences")
_ONE_PROCESS = (None, 0, 1)


def is_read_free(device: torch.device) -> bool:
    """Whether the host reads the memory of `device` without waiting for anything."""
    return device.type == "cpu"


def stops_late(device: torch.device) -> bool:
    """Whether transformers' loop learns one step late that it should stop, on this kind of device, as it does on mps."""
    late = getattr(generation_utils, "DeferredStopCheck", None)
    return late is not None and bool(late.is_supported(device, None, cache_is_returned=False, is_assistant=False))


def reason_to_look_at_once(
    guard: Guard, model: nn.Module, device: torch.device, processors: Any, criteria: Any, config: Any,
    *, synced_gpus: bool,
) -> str | None:  # fmt: skip
    """Return why each step of a sampling loop has to be looked at before anything is made of it; None: no need to.

    Args:
        guard: The guard that answers for `model`.
        model: The model that generates.
        device: Where its tokens are.
        processors: The loop's processors of scores.
        criteria: The loop's criteria for the end.
        config: The `GenerationConfig` of this generation.
        synced_gpus: Whether other processes take the same number of steps.
    """
    if is_read_free(device):
        return "a look costs nothing"
    if id(guard) not in here.nets or any(step[2] is CALL for step in here.running):
        return "it is no generation of its own"
    if any(owner_of(type(model), name) is not GenerationMixin for name in _OF_THE_LOOP):
        return "its loop is not that of transformers"
    if synced_gpus or getattr(model, "_tp_size", None) not in _ONE_PROCESS:
        return "other processes take part in its steps"
    if config.is_assistant:
        return "the loop around it is assisted decoding"
    if type(processors) is not logits_process.LogitsProcessorList or not _are_of(
        processors, _PROCESSORS, logits_process
    ):
        return "a processor of scores may count its calls"
    if type(criteria) is not stopping_criteria.StoppingCriteriaList or not _are_of(
        criteria, _CRITERIA, stopping_criteria
    ):
        return "a criterion for the end may count its calls"
    if guard.own_modules or guard.own_steps or is_passed_over(guard):
        return "the model makes NaN or Inf of its own"
    if stops_late(device) and config.return_dict_in_generate:
        return "the loop runs one step beyond the last one"
    return None


def _are_of(entries: Any, names: frozenset[str], module: Any) -> bool:
    return all(type(entry).__name__ in names and type(entry).__module__ == module.__name__ for entry in entries)
