"""A model under FSDP2 (`fully_shard`): another dtype to compute in, in place, and a step that was broken off forgotten.

torch has no public way to change a `MixedPrecisionPolicy` once it is there. What is changed here is private to torch:
each attribute is looked for before anything is changed, and one that is missing means a restart.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NeedsRestart
from ..facts import FLOAT16, FLOAT32, Dtype
from ..guarding.state import torch_dtype

# What is changed, by the class that has it in torch 2.13.
_OF_MODULE = ("_get_fsdp_state", "reset_iter_state")
_OF_STATE = ("_fsdp_param_groups", "_mp_policy")
_OF_GROUP = ("fsdp_params", "mp_policy", "_init_mp_dtypes")
_OF_PARAMETER = ("mp_policy", "sharded_param", "all_gather_outputs", "unsharded_accumulated_grad")


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was applied to `model` or to anything in it. Imports nothing."""
    return next(_sharded(model), None) is not None


def dtype_computed_in(model: nn.Module) -> torch.dtype | None:
    """Return the dtype that most numbers of the sharded blocks are computed in; None where nothing is sharded."""
    numbers: Counter[torch.dtype] = Counter()
    for group in _groups(model):
        for parameter in group.fsdp_params:
            numbers[_computed_in(group.mp_policy, parameter)] += parameter.sharded_param.numel()
    return numbers.most_common(1)[0][0] if numbers else None


def require_switchable(model: nn.Module, dtype: Dtype) -> None:
    """Raise where this torch lacks what `switch_policy` or `forget_step` change.

    Raises:
        NeedsRestart: With the name of what is missing.
    """
    for module in _sharded(model):
        _require(module, _OF_MODULE, dtype)
        state = module._get_fsdp_state()
        _require(state, _OF_STATE, dtype)
        for group in state._fsdp_param_groups:
            _require(group, _OF_GROUP, dtype)
            for parameter in group.fsdp_params:
                _require(parameter, _OF_PARAMETER, dtype)
                if hasattr(parameter.sharded_param.to_local(), "fsdp_pre_all_gather"):
                    raise NeedsRestart("FSDP2 with parameters that gather themselves (float8)", dtype.name)


def switch_policy(model: nn.Module, dtype: Dtype) -> None:
    """Have every block that computes in the dtype of most of the model compute in `dtype` from the next forward on.

    Blocks with a policy of another dtype keep it, as islands in float32 do. Sharded parameters, which the optimizer has,
    stay as they are. Every rank has to call it between the same two steps, after `forget_step`.

    Raises:
        NeedsRestart: If this torch lacks what has to be changed. Nothing was changed.
    """
    require_switchable(model, dtype)
    former, new = dtype_computed_in(model), torch_dtype(dtype)
    if former is None or former == new:
        return
    for module in _sharded(model):
        state = module._get_fsdp_state()
        for group in state._fsdp_param_groups:
            policy = group.mp_policy
            if policy.param_dtype is None:  # that of the parameters
                policy = replace(policy, param_dtype=group.fsdp_params[0].sharded_param.dtype)
            _switch_group(group, policy_in(policy, former, new))
        policies = [group.mp_policy for group in state._fsdp_param_groups]
        state._mp_policy = policies[0] if policies else policy_in(state._mp_policy, former, new)


def policy_in(policy: Any, former: torch.dtype, new: torch.dtype) -> Any:
    """Return a `MixedPrecisionPolicy` with `new` wherever it names `former`.

    Gradients of float16 are summed over the ranks in float32: of many that fit the sum may not.
    """
    computed, reduced, output = (
        new if dtype == former else dtype for dtype in (policy.param_dtype, policy.reduce_dtype, policy.output_dtype)
    )
    if computed == new == torch_dtype(FLOAT16):
        reduced = torch.float32
    return replace(policy, param_dtype=computed, reduce_dtype=reduced, output_dtype=output)


def forget_step(model: nn.Module) -> None:
    """Bring FSDP2 to where a step begins, wherever the last one was broken off: on every rank, or on none.

    Gradients that were summed up without a synchronization are dropped; those of the sharded parameters are the
    optimizer's to zero.

    Raises:
        NeedsRestart: If this torch lacks what has to be changed.
    """
    require_switchable(model, FLOAT32)
    for root in _roots(model):
        root.reset_iter_state()
    for group in _groups(model):
        for parameter in group.fsdp_params:
            # reset_iter_state leaves them, and the next step would add to them.
            parameter.unsharded_accumulated_grad = None
            if (unsharded := getattr(parameter, "_unsharded_param", None)) is not None:
                unsharded.grad = None


def gradients_here(model: nn.Module) -> Iterator[Tensor]:
    """Yield the gradients that this rank has: of a sharded parameter its own part, which may be empty."""
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is not None:
            local = getattr(gradient, "_local_tensor", gradient)
            yield local


def _switch_group(group: Any, policy: Any) -> None:
    group.mp_policy = policy
    for parameter in group.fsdp_params:
        parameter.mp_policy = policy
        parameter.all_gather_outputs = []  # allocated once, in the former dtype, and so was the parameter made of them
        parameter.__dict__.pop("_unsharded_param", None)
    group._init_mp_dtypes()


def _computed_in(policy: Any, parameter: Any) -> torch.dtype:
    return policy.param_dtype or parameter.sharded_param.dtype  # type: ignore[no-any-return]


def _sharded(model: nn.Module) -> Iterator[Any]:
    """Yield the modules that `fully_shard` was applied to, those around others first."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    if kind is not None:
        yield from (module for module in model.modules() if isinstance(module, kind))


def _roots(model: nn.Module) -> Iterator[Any]:
    """Yield the sharded modules that are in no other."""
    inside: set[nn.Module] = set()
    for module in _sharded(model):
        if module not in inside:
            yield module
            inside.update(module.modules())


def _groups(model: nn.Module) -> Iterator[Any]:
    for module in _sharded(model):
        yield from module._get_fsdp_state()._fsdp_param_groups


def _require(owner: Any, names: tuple[str, ...], dtype: Dtype) -> None:
    for name in names:
        if not hasattr(owner, name):
            missing = f"FSDP2 of torch {torch.__version__}, where {type(owner).__name__} has no {name},"
            raise NeedsRestart(missing, dtype.name)
