"""Weights that a quantizer unpacks in the first forward, unpacked before it: a step that changes weights cannot be repeated."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

_HANDLE = "ct_decompress_hook"  # of the pre-hook with which compressed-tensors does it, once (compressors/model_compressor.py)


def unpack_now(model: nn.Module) -> None:
    """Run what compressed-tensors would run as the first step of `model` or of a model inside it begins.

    It leaves tables in the place of the modules' parameters which hand out copies, for weights that are offloaded. Where none
    is, the parameters are in the modules themselves afterwards: what is written into a copy is lost.
    """
    for module in list(model.modules()):
        handle: Any = module.__dict__.get(_HANDLE)
        hook = module._forward_pre_hooks.get(getattr(handle, "id", -1))
        if hook is None:
            continue
        hook(module, ())
        is_spread = getattr(module, "hf_device_map", None) is not None
        if not is_spread and any(type(part._parameters) is not dict for part in module.modules()):
            import_module("compressed_tensors.offload").remove_dispatch(module)
