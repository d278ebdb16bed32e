"""From a model as it was saved to the same one in float16: rescaled, proven, cast, with its islands in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from ..errors import RescaleError
from ..facts import BFLOAT16, FLOAT16, FLOAT32, DeviceFacts, Dtype, Rescale, VerdictKind
from ..models.islands import Island, can_be_island
from ..models.offloaded import is_offloaded
from ..models.recast import kept_in_float32, left_over, recast
from ..numerics import compute_in
from ..planning import Candidate, Ground, Plan
from . import Rescaled, fold_in, keep_rescaled
from .folding.save import save_as_it_was

_NO_KERNELS = (Ground.UNSUPPORTED, Ground.CRASHES, Ground.WRONG, Ground.UNKNOWN)
_FORMER = (torch.bfloat16, torch.float32)


def before_half(saved: Dtype) -> Dtype:
    """Return the dtype to load a checkpoint in that is then brought into float16.

    That is its own, unless no model computes in it (float8), or its activations may not fit into it (float16).
    """
    return saved if saved in (BFLOAT16, FLOAT32) else FLOAT32


def halve(
    model: nn.Module,
    rescale: Rescale | None,
    islands: Iterable[str] = (),
    *,
    computing: AbstractContextManager[object] | None = None,
) -> Rescaled | None:
    """Bring `model` into float16 in place, exactly rescaled; return the rescale in force, None where there is none.

    Args:
        model: As it was saved, in bfloat16 or float32. What its class keeps in float32 goes there.
        rescale: What to fold in first. It is proven on the model before anything is cast.
        islands: Names of the modules that go to float32 instead.
        computing: A context for the proof: where the device cannot multiply in the model's dtype.

    Raises:
        RescaleError: If the rescale is not exact in this model, or it cannot be folded into it: the model is as it was
            then. Also if a parameter does not take the cast.
    """
    if is_offloaded(model):
        raise RescaleError("weights that are offloaded would have to be rescaled every time they are brought in")
    own = own_names(model)
    modules = [_island(model, own(name)) for name in islands]
    rescale = rescale.renamed(own) if rescale else None
    rescaled = None
    if rescale is not None:
        for name in rescale.unproven:
            _module(model, name)
        fold, effect = fold_in(model, rescale, computing=computing)
        rescaled = keep_rescaled(model, fold, effect)
    if rescaled is not None or modules:
        save_as_it_was(model)
    former = {one.dtype for one in model.parameters()}.intersection(_FORMER)
    for module in modules:
        recast(module, {torch.bfloat16}, torch.float32)
    in_islands = {id(one) for module in modules for one in module.parameters()}
    recast(model, former, torch.float16, without=in_islands)
    for module in modules:
        Island(torch.float16).attach(module)
    if left := left_over(model, former, torch.float16, without=in_islands):
        raise RescaleError(f"{left} parameters stayed in another dtype")
    return rescaled


def keep_as_in_half(model: nn.Module) -> None:
    """Bring into float32 what transformers would keep there in float16 (T5's `wo`, say); all else stays."""
    stays_in_float32 = kept_in_float32(model, torch.float16)
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.bfloat16 and stays_in_float32(name):
            parameter.data = parameter.data.float()


def computing_on(device: DeviceFacts, dtype: Dtype) -> AbstractContextManager[object]:
    """Return a context in which products of weights in `dtype` come out right, and fast, on the device."""
    if dtype == FLOAT32 or device.verdict(dtype).kind is VerdictKind.NATIVE:
        return nullcontext()
    return compute_in(FLOAT32)


def computing_in_full(plan: Plan) -> AbstractContextManager[object]:
    """Return the same for the dtype that the plan's checkpoint was saved in; what was in float16 is in float32 then."""
    saved = Candidate(plan.saved, plan.saved)
    decision = next((one for one in plan.decisions if one.candidate == saved), None)
    runs = decision is not None and decision.ground not in _NO_KERNELS  # slow is fast enough for a few tokens
    return nullcontext() if plan.saved in (FLOAT16, FLOAT32) or runs else compute_in(FLOAT32)


def own_names(model: nn.Module) -> Callable[[str], str]:
    """Return what turns a name in a model with a head into one in `model` without, as `AutoModel`'s; or the reverse."""
    inner = getattr(model, "base_model_prefix", "") or "model"
    prefix = f"{inner}."
    if not hasattr(model, inner):
        return lambda name: name.removeprefix(prefix)
    own = {name for name, _ in model.named_children()}
    return lambda name: name if name.partition(".")[0] in own else f"{prefix}{name}"


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as exc:
        raise RescaleError(f"{type(model).__name__} has no module {name}") from exc


def _island(model: nn.Module, name: str) -> nn.Module:
    module = _module(model, name)
    if reason := can_be_island(model, module):
        raise RescaleError(f"{name} cannot be computed in float32 by itself: {reason}")
    return module
