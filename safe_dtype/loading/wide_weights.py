"""What files hold in float32 and a model in float16 needs in float32: brought back after loading.

Transformers loads all in one dtype: a norm of 1e5 that was saved in float32 is infinite in float16.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from ..errors.warn import warn
from ..facts import FLOAT16
from ..models.islands import Island, can_be_island
from ..models.offloaded import is_offloaded
from ..models.original_weights import OriginalWeights
from ..models.recast import recast
from ..planning import Plan
from ..rescaling.folding.rounded_weights import RoundedWeights

logger = logging.getLogger(__name__)


def keep_out_of_range(model: nn.Module, plan: Plan) -> bool:
    """Bring the modules of such weights into float32; return whether the whole model had to go there.

    Args:
        model: As it was loaded, its origin with it. Of weights that float16 holds nothing is read.
        plan: That it was loaded with.
    """
    if plan.storage != FLOAT16 or plan.quantization or plan.rescale or plan.islands:
        return False
    # Among float16 ones, who saves a tensor in float32 wants its small numbers as well: the scales of a layer, say.
    names = _out_of_range(model, least=FLOAT16.smallest_normal if plan.saved == FLOAT16 else 0.0)
    if not names:
        return False
    if is_offloaded(model):
        warn(f"{plan.source}: float16 does not reach {names[0]}, and offloaded weights stay as they are")
        return False
    modules = {name.rpartition(".")[0] for name in names}
    refusals = [reason for name in modules if (reason := can_be_island(model, model.get_submodule(name)))]
    if refusals:
        warn(f"{plan.source} was to be loaded in float16, which does not reach {names[0]}. It is in float32 now")
    with RoundedWeights(model) as weights:
        for name in ("",) if refusals else modules:
            _bring_into_float32(model, name, weights)
    logger.info("%s: float16 does not reach %s: %s stay in float32", plan.source, ", ".join(names), sorted(modules))
    return bool(refusals)


def bring_back_float32(model: nn.Module, plan: Plan) -> None:
    """Bring back the bits of what is in float32 in a model in float16, and was loaded in 16 bit on the way there.

    In files that mix formats these are norms that a rescale moves, and islands.
    """
    if plan.saved.itemsize != 2:
        return
    saved = getattr(torch, plan.saved.name)
    with RoundedWeights(model) as weights:
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float32 or type(parameter.data) is not Tensor:
                continue
            stored = weights.restored(name, parameter.data, passed=saved)
            if stored is not None:
                parameter.data = stored.to(parameter)


def _bring_into_float32(model: nn.Module, name: str, weights: RoundedWeights) -> None:
    """Bring one module into float32, an island in the model; the model itself where there is no name."""
    module = model.get_submodule(name)
    recast(module, {torch.float16}, torch.float32, original=weights.of(name))
    if name:
        Island(torch.float16).attach(module)


def _out_of_range(model: nn.Module, least: float) -> list[str]:
    """Return the names of the parameters in float16 that are infinite, or below `least`, and are not in their files."""
    names = []
    with OriginalWeights(model) as original:
        for name, parameter in model.named_parameters():
            if parameter.dtype != torch.float16 or parameter.is_meta or not original.loses(name, torch.float16):
                continue
            if _is_outside(parameter, least) and _is_outside(_finite(original.tensor(name)), least):
                names.append(name)
    return names


def _is_outside(tensor: Tensor | None, least: float) -> bool:
    """Whether the largest |number| is beyond float16, or below `least`."""
    if tensor is None or not tensor.numel():
        return False
    smallest, largest = torch.aminmax(tensor.detach())
    reach = max(-float(smallest), float(largest))
    return not (least <= reach <= FLOAT16.largest)


def _finite(stored: Tensor | None) -> Tensor | None:
    """Return the finite numbers of a tensor of a file; None where they are none, or all zero."""
    if stored is None or not stored.is_floating_point():
        return None
    finite = stored[stored.isfinite()].float()
    return finite if finite.numel() and bool(finite.any()) else None
