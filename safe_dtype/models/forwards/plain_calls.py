"""Whether a call of a linear module or an embedding may be computed by other code than torch's: nobody would notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ...numerics.compute_in import compute_in
from ...numerics.followed import is_followed

try:
    from transformers.utils.output_capturing import _active_collector
except ImportError:  # the first releases of transformers 5 have none
    _active_collector = None

_CALL = nn.Module.__call__
_RECORDERS = "transformers.utils.output_capturing"


def is_plain(tensor: Tensor) -> bool:
    """Whether there are numbers in it to compute with, of this process, as they lie in memory."""
    # Of one with the bit for it set, as the imaginary part of a conjugate is, what lies there are the numbers with the
    # other sign.
    return type(tensor) is Tensor and tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_neg()


def is_bias(bias: Tensor, dtype: torch.dtype, outputs: int) -> bool:
    """Whether a bias is so many numbers in a dtype, one beside the other."""
    return (
        type(bias) is nn.Parameter
        and bias.is_cpu
        and bias.dtype is dtype
        and bias.shape == (outputs,)
        and bias.is_contiguous()
        and not bias.is_neg()
    )


def is_watched() -> bool:
    """Whether somebody looks on who expects the calls of a plain module: a trace, a transform or a mode of torch."""
    return bool(
        torch._C._is_tracing()
        or is_followed()
        or torch._C._len_torch_dispatch_stack()
        or (torch._C._len_torch_function_stack() and not _only_known_modes())
    )


def _only_known_modes() -> bool:
    # In these blocks keep to the dtype and the device of their weight.
    return all(isinstance(mode, (compute_in, DeviceContext)) for mode in _get_current_function_mode_stack())  # type: ignore[no-untyped-call]


def is_called_plainly(module: nn.Module) -> bool:
    """Whether calling a module is calling its forward: nobody has put a hook on it, on its class or on all modules."""
    return not (has_hook(module) or has_global_hook())


def has_hook(module: nn.Module) -> bool:
    """Whether somebody has put a hook on a module or on its class."""
    return has_own_hook(module) or type(module).__call__ is not _CALL


def has_own_hook(module: nn.Module) -> bool:
    """Whether somebody has put a hook on a module, which may do something in a call of it."""
    own = module.__dict__.get  # of a module that computes by a forward of ours, looking up takes ten times as long
    hooks = own("_forward_hooks")
    return bool(
        own("_forward_pre_hooks")
        or (hooks and not _are_idle(hooks))
        or own("_backward_pre_hooks")
        or own("_backward_hooks")
        or own("_compiled_call_impl") is not None
    )


def _are_idle(hooks: Mapping[Any, Any]) -> bool:
    """Whether hooks are those that transformers leaves on a model once it has returned all hidden states, and nobody asks now."""
    return (
        _active_collector is not None
        and all(getattr(hook, "__module__", None) == _RECORDERS for hook in hooks.values())
        and not _active_collector.get()
    )


def has_global_hook() -> bool:
    """Whether somebody has put a hook on all modules."""
    return bool(
        modules._global_forward_pre_hooks
        or modules._global_forward_hooks
        or modules._global_backward_pre_hooks
        or modules._global_backward_hooks
    )


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether torch records what is computed of these, for a gradient of one of them."""
    return torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
