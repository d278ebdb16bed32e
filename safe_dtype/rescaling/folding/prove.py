"""Fold a rescale into a real model, and prove on it that nothing it computes has changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import RescaleError
from ...errors.of_the_moment import is_of_the_moment
from ...facts import Rescale
from ...models.recast import main_dtype
from .fold import Fold

HiddenKey = tuple[str, str, int]  # of which inner model, in which field of what it returns, at which place

# What modelling code raises where it wants other inputs than tokens.
RUN_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

# In one row: a classifier without a padding token takes no more. Few, for it is done at every load.
_TOKENS = 6
_CAPTURES = "_output_capturing_hooks_installed"  # transformers marks a model whose modules have its hooks
_NO_STATE = ("logits", "hidden_state", "hidden_states", "attentions", "loss")  # how names of results and extras end


@dataclass(frozen=True, slots=True)
class _Run:
    """What a model returned: its results, what its inner models gave for hidden states, and what it cached."""

    results: Tensor
    hidden: Mapping[HiddenKey, Tensor]
    cached: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Effect:
    """What the fold did to what a model returns, found by running it before and after."""

    bitwise: bool  # else equal but for the order of sums
    hidden: Mapping[HiddenKey, int] = field(default_factory=dict)  # hidden states that are 2 ** this times themselves
    keeps_cache: bool = True  # what was cached before the fold is right after it


def fold_in(
    model: nn.Module, rescale: Rescale, *, computing: AbstractContextManager[object] | None = None
) -> tuple[Fold, Effect]:
    """Fold `rescale` into `model`, and compare what it computes of a few random tokens before and after.

    Args:
        model: In bfloat16 or float32, on the device that it will run on.
        rescale: Gauges with their bits.
        computing: A context for the two runs: where the device cannot multiply in the model's dtype, or where that
            overflows.

    Raises:
        RescaleError: If the results are not the same bits, nor within one rounding of them, where the rescale reorders
            sums or weights in float16 are rounded anew; or if the model cannot be run on tokens alone. The model is as it was.
    """
    fold = Fold(model)
    batch = _few_tokens(model)
    # Views of files stay views of them. On a device they would take its memory twice, and moving back loses no bit.
    originals = [(one, one.data) for one in model.parameters() if one.is_cpu]
    with computing or nullcontext():
        before = _run(model, batch)
        fold.move_to(rescale)
        try:
            after = _run(model, batch)
            effect = _compare(before, after, _rounding(model, before.results))
        except BaseException:  # an interrupt as well
            fold.undo()
            for parameter, data in originals:
                parameter.data = data
            raise
    return fold, effect


def _few_tokens(model: Any) -> dict[str, Tensor]:
    """Return a batch of random tokens, the same every time, with what the architecture needs beside it."""
    config = model.config
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise RescaleError(
            f"{type(model).__name__} reads {model.main_input_name}, and is not known to be run on tokens"
        )
    vocabulary = config.get_text_config().vocab_size
    random = torch.Generator().manual_seed(0)
    device = next(one.device for one in model.parameters() if not one.is_meta)
    ids = torch.randint(vocabulary, (1, _TOKENS), generator=random).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(vocabulary, (1, _TOKENS), generator=random).to(device)
    return inputs


def _run(model: Any, batch: Mapping[str, Tensor]) -> _Run:
    training = [part for part in model.modules() if part.training]
    before = [(part, set(part._forward_hooks), _CAPTURES in part.__dict__) for part in model.modules()]
    model.eval()
    hidden: dict[HiddenKey, Tensor] = {}
    handles = [one.register_forward_hook(_Keep(name, hidden)) for name, one in innermost_models(model)]
    try:
        with torch.inference_mode():
            returned = model(**batch, output_hidden_states=True, **_asked(model))
    except RUN_FAILURES as exc:
        if is_of_the_moment(exc):
            raise
        problem = f"{type(model).__name__} cannot be run on a few tokens: {type(exc).__name__}: {exc}"
        raise RescaleError(problem) from exc
    finally:
        for handle in handles:
            handle.remove()
        for part in training:
            part.training = True
        _remove_captures(before)
    results = returned.get("logits")
    results = returned.get("last_hidden_state") if results is None else results
    if results is None:
        raise RescaleError(f"{type(model).__name__} returns neither logits nor a last hidden state")
    states = (value for name, value in returned.items() if not name.endswith(_NO_STATE))
    return _Run(results.clone(), hidden, tuple(one for value in states for one in _tensors(value)))


def _remove_captures(before: list[tuple[nn.Module, set[int], bool]]) -> None:
    """Take off what transformers puts on modules where hidden states are asked for: with it no model can be pickled."""
    for part, hooks, was_marked in before:
        for key in part._forward_hooks.keys() - hooks:
            if getattr(part._forward_hooks[key], "__name__", "") == "output_capturing_hook":
                del part._forward_hooks[key]
        if not was_marked:
            part.__dict__.pop(_CAPTURES, None)


def _asked(model: Any) -> dict[str, bool]:
    """Return what the run asks for beside hidden states, whatever the model's config says."""
    arguments = {"return_dict": True} if getattr(model.config, "return_dict", True) is False else {}
    # A config that was left by training often says no, and generation asks for it all the same.
    return (
        {**arguments, "use_cache": True} if "use_cache" in inspect.signature(model.forward).parameters else arguments
    )


def innermost_models(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the models of transformers that have no other one inside: those that return hidden states first."""
    for name, module in model.named_modules():
        inner = (one for one in module.modules() if one is not module)
        if isinstance(module, PreTrainedModel) and not any(isinstance(one, PreTrainedModel) for one in inner):
            yield name, module


class _Keep:
    """A forward hook that keeps the hidden states that a model returns."""

    def __init__(self, name: str, states: dict[HiddenKey, Tensor]) -> None:
        self._name, self._states = name, states

    def __call__(self, _module: nn.Module, _args: Any, returned: Any) -> None:
        for field_name, place, state in hidden_states(returned):
            self._states[self._name, field_name, place] = state.clone()


def hidden_states(returned: Any) -> Iterator[tuple[str, int, Tensor]]:
    """Yield every hidden state in what a model returned, with its field and its place there; -1 for a lone one."""
    for name, value in returned.items() if isinstance(returned, Mapping) else ():
        if name.endswith("hidden_states") and isinstance(value, tuple):
            yield from ((name, place, one) for place, one in enumerate(value) if isinstance(one, Tensor))
        elif name.endswith("last_hidden_state") and isinstance(value, Tensor):
            yield name, -1, value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield copies of the tensors in what a model hands to its next step: caches, and the states of Mamba and RWKV."""
    if isinstance(value, Tensor):
        yield value.clone()
    elif isinstance(value, Mapping):
        yield from (one for inner in value.values() for one in _tensors(inner))
    elif isinstance(value, (list, tuple)):
        yield from (one for inner in value for one in _tensors(inner))
    elif type(value).__module__.startswith("transformers"):  # the code of a repository lies in transformers_modules
        yield from _tensors(vars(value)) if hasattr(value, "__dict__") else ()


def _rounding(model: nn.Module, results: Tensor) -> torch.dtype:
    """Return the dtype whose rounding shows in the results: in float16 moved weights are rounded as well."""
    return torch.float16 if main_dtype(model) == torch.float16 else results.dtype


def _compare(before: _Run, after: _Run, rounding: torch.dtype) -> Effect:
    bitwise = torch.equal(before.results, after.results)
    if not bitwise:
        _check_rounding(before.results, after.results, rounding)
    hidden = {}
    for key, was in before.hidden.items():
        exponent = _exponent(was, after.hidden[key], rounding)
        if exponent and key[1].endswith("last_hidden_state"):
            # Its head makes up for that, and would go on from it in its own size where it is given back so.
            raise RescaleError(f"what {key[0]} hands on to the head would be 2^{exponent} times itself")
        if exponent:
            hidden[key] = exponent
    same = len(before.cached) == len(after.cached) and all(
        torch.equal(was, now) or (not bitwise and _is_close(was, now, rounding))
        for was, now in zip(before.cached, after.cached, strict=True)
    )
    return Effect(bitwise, hidden, same)


def _check_rounding(was: Tensor, now: Tensor, rounding: torch.dtype) -> None:
    relative = _difference(was, now)
    # A sum in another order is rounded otherwise: by less than one unit in the last place of the result, on average.
    if not relative <= torch.finfo(rounding).eps:
        raise RescaleError(
            f"the results differ by {relative:.2g} of their size (RMS) once it is folded in, {rounding} rounds by "
            f"{torch.finfo(rounding).eps:.2g}"
        )


def _is_close(was: Tensor, now: Tensor, rounding: torch.dtype) -> bool:
    return was.shape == now.shape and was.is_floating_point() and _difference(was, now) <= torch.finfo(rounding).eps


def _difference(was: Tensor, now: Tensor) -> float:
    """Return the RMS of the difference over that of `was`."""
    return float((now.double() - was.double()).pow(2).mean().sqrt() / was.double().pow(2).mean().sqrt())


def _exponent(was: Tensor, now: Tensor, rounding: torch.dtype) -> int:
    """Return k where `now` is 2 ** k times `was`.

    Raises:
        RescaleError: If it is no power of two times it: some paths were moved, and others were not.
    """
    largest = float(was.abs().amax())
    if torch.equal(was, now) or not largest:
        return 0
    ratio = float(now.abs().amax()) / largest
    exponent = round(torch.tensor(ratio).log2().item()) if ratio > 0 else 0
    scaled = now.double() * 2.0**-exponent
    error = float((scaled - was.double()).abs().amax()) / largest
    if not error <= 4 * torch.finfo(rounding).eps:
        raise RescaleError(f"a hidden state is not scaled as a whole: {ratio:.3g} times, and off by {error:.2g} of it")
    return exponent
