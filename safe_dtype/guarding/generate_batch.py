"""Continuous batching: what failed goes on request by request, from the tokens that each of them has.

Its pool of keys and values is one block of bytes, typed once, so a running one cannot change its dtype. A new one is
made for the requests that failed: prompt and tokens so far are their new prompts.
"""

from __future__ import annotations

import copy
import logging
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import NoDtypeLeft, StrictModeError
from ..facts import FLOAT32
from .blame import module_raising, name_of
from .classify import classify, text_of
from .diagnosis import Findings, calls_in, diagnose, failure_shown, is_vetoed, modules_in
from .events import changing
from .failure import Failure, FailureKind
from .incident import Incident
from .recover import TriedRemedies, cure, keep_lessons, note_refusal
from .remedies.next_dtype import dtypes_left
from .state import Guard

logger = logging.getLogger(__name__)

_OWN = "own values in a batch"  # of `Guard.mentioned`


class NotANumberInBatchError(FloatingPointError):
    """Ends a batch in which the logits that are used hold NaN or Inf: transformers would draw token 0 from them."""

    def __init__(self) -> None:
        super().__init__("NaN or Inf in the results")


def step_of_a_batch(
    guard: Guard, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `forward(*args, **kwargs)` in a batch that runs, and keep what it raises: a request knows its text alone.

    On a CPU the logits are looked at. Elsewhere transformers captures the step in a graph, where nobody can look.

    Raises:
        NotANumberInBatchError: If they hold NaN or Inf, unless float32 was seen to give that too.
    """
    if module is not guard.model():
        return forward(*args, **kwargs)
    try:
        output = forward(*args, **kwargs)
        if guard.policy.mode != "strict" and _OWN not in guard.mentioned and _holds_no_numbers(output, kwargs):
            raise NotANumberInBatchError
    except Exception as exc:
        guard.batch_errors[str(exc)] = exc
        raise
    return output


def _holds_no_numbers(output: Any, kwargs: dict[str, Any]) -> bool:
    logits, used = getattr(output, "logits", None), kwargs.get("logits_indices")
    if not isinstance(logits, torch.Tensor) or logits.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if isinstance(used, torch.Tensor) and "logits_to_keep" not in kwargs:
        logits = logits[:, used]
    # NaN or +Inf: -Inf is a mask.
    return logits.numel() > 0 and not bool((logits.amax(-1) < torch.inf).all())


def guarded_batch(
    guard: Guard, generate_batch: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call `generate_batch(*args, **kwargs)`; requests that failed by their dtype are taken up again in another.

    Which failures these are is found out as in a guarded step, by trials of the module that failed on its own inputs. A
    step that failed is not repeated, for its pool is gone: an attention that reads the pool cannot be tried alone, and
    there the text decides. NaN is seen on a CPU, and not in strict mode.

    Raises:
        NoDtypeLeft: If every remedy failed.
    """
    tried = TriedRemedies()
    let_be: set[str] = set()  # texts of what no dtype has to do with
    guard.batches += 1
    try:
        done = generate_batch(*args, **kwargs)
        while (model := guard.model()) is not None and (failed := _failed(done, let_be)):
            text = done[failed[0]].error
            error = guard.batch_errors.pop(text, None) or RuntimeError(text)
            steps = max(len(done[name].generated_tokens) for name in failed)
            if not _is_cured(guard, model, error, tried, steps):
                let_be.add(text)
                continue
            _forget_pool(model)
            _take_up(generate_batch, model, done, failed, args, kwargs)
        keep_lessons(guard, tried)
        return done
    except BaseException as exc:
        if isinstance(exc, (StrictModeError, NoDtypeLeft)):
            note_refusal(guard, exc)
        with changing(guard):
            tried.take_back(guard, ended_by=exc)
        raise
    finally:
        guard.batches -= 1
        guard.batch_errors.clear()


def _failed(done: dict[str, Any], let_be: set[str]) -> tuple[str, ...]:
    """Return the requests that ended with one and the same text, which is none of `let_be`."""
    texts = {key: request.error for key, request in done.items() if request.error is not None}
    text = next((text for text in texts.values() if text not in let_be), None)
    return tuple(key for key in texts if texts[key] == text)


def _is_cured(guard: Guard, model: nn.Module, error: Exception, tried: TriedRemedies, steps: int) -> bool:
    """Cure the model of `error`; False where it is no matter of dtypes. What did not help is taken back then."""
    since = time.perf_counter()
    with changing(guard):
        if isinstance(error, NotANumberInBatchError) and guard.dtype() == FLOAT32:
            tried.take_back(guard, own="")
            guard.mentioned.add(_OWN)
            logger.warning("NaN or Inf in a batch comes in float32 as well: the requests go on as they are")
            return True
        failure, blamed, findings = _examined(guard, model, error)
        traceback.clear_frames(error.__traceback__)  # they hold the activations of the failed step
        if failure is not None:
            failure = replace(failure, module=name_of(model, blamed), step=steps)
            incident = Incident(guard, model, failure, since, blamed, error=error, findings=findings, log=tried.log)
            if cure(incident, tried):
                return True
        tried.take_back(guard)
        return False


def _examined(
    guard: Guard, model: nn.Module, error: Exception
) -> tuple[Failure | None, nn.Module | None, Findings | None]:
    """Return what `error` is a failure of, of which module, and what trials of it showed."""
    if isinstance(error, NotANumberInBatchError):
        return Failure(FailureKind.NONFINITE, text_of(error), guard.dtype()), None, None
    by_text = classify(error)
    if (by_text is None and is_vetoed(error)) or (by_text is not None and by_text.sticky):
        return by_text, None, None
    blamed = module_raising(model, error.__traceback__)
    calls = calls_in(model, error.__traceback__)
    if not calls:  # it was raised elsewhere, and only its text is left
        return by_text, blamed, None
    modules = modules_in(model, error.__traceback__)
    findings = diagnose(guard, model, calls, error, list(dtypes_left(guard, model)))
    failure = failure_shown(findings, by_text, error, guard.dtype(), modules)
    return failure, findings.module or blamed, findings


def _take_up(
    generate_batch: Callable[..., Any], model: Any, done: dict[str, Any], failed: tuple[str, ...],
    args: tuple[Any, ...], kwargs: dict[str, Any],
) -> None:  # fmt: skip
    """Generate the rest of the requests in `failed`, and put the whole of each into `done`."""
    config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None) or model.generation_config
    wanted = kwargs.get("max_new_tokens") or config.max_new_tokens
    rest = {name: value for name, value in kwargs.items() if name not in ("inputs", "generation_config")}
    by_remaining: dict[int | None, list[str]] = defaultdict(list)
    for key in failed:
        by_remaining[None if wanted is None else wanted - len(done[key].generated_tokens)].append(key)
    for remaining, keys in by_remaining.items():
        once = copy.deepcopy(config)
        once.num_return_sequences = 1  # every sequence that failed is a request of its own now
        once.max_new_tokens = remaining
        rest.pop("max_new_tokens", None)
        prompts = [[*done[key].prompt_ids, *done[key].generated_tokens] for key in keys]
        continued = list(generate_batch(prompts, once, *args[2:], **rest).values())
        for key, new in zip(keys, continued, strict=False):
            old = done[key]
            old.generated_tokens = [*old.generated_tokens, *new.generated_tokens]
            old.logprobs = [*old.logprobs, *new.logprobs]
            old.error, old.status = new.error, new.status


def _forget_pool(model: Any) -> None:
    # A persistent manager holds a pool in the old dtype.
    if hasattr(model, "_cached_continuous_batching_manager"):
        model.destroy_cached_continuous_batching_manager()
