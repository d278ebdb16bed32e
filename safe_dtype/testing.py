"""Faults to test a guarded model with: a real module that raises, or spoils its numbers, in a bad dtype.

    with fault(model, "model.layers.1.mlp.down_proj", "cublas", call=3):
        model.generate(...)  # the fourth step fails in bfloat16, and goes on in float32

The device of a developer runs what a user's does not; these are the words and the numbers of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .errors import UnknownDtypeError
from .facts import BFLOAT16, Dtype, dtype_named

__all__ = ["TEXTS", "Fault", "fault"]

TEXTS = {
    # The text of Qwen3 on a V100, and that of a CPU kernel: torch fills in the dtype.
    "cublas": "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx( handle, opa, opb, m, n, k, &falpha, "
    "a, CUDA_R_16BF, lda, b, CUDA_R_16BF, ldb, &fbeta, c, CUDA_R_16BF, ldc, compute_type, "
    "CUBLAS_GEMM_DEFAULT_TENSOR_OP)`",
    "not_implemented": "\"addmm_impl_cpu_\" not implemented for 'BFloat16'",
    "mismatch": "mat1 and mat2 must have the same dtype, but got Float and BFloat16",
    "kernel_arch": "FlashAttention only supports Ampere GPUs or newer.",
    "sticky": "../aten/src/ATen/native/cuda/TensorCompare.cu:110: _assert_async_cuda_kernel: block: [0,0,0], thread: "
    "[0,0,0] Assertion `probability tensor contains either `inf`, `nan` or element < 0` failed. CUDA error: "
    "device-side assert triggered",
    # No dtype cures these: they must come through untouched.
    "out_of_memory": "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 8.00 GiB total capacity)",
    "shape": "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)",
}
_SPELLED = {
    "bfloat16": ("BFloat16", "CUDA_R_16BF"),
    "float16": ("Half", "CUDA_R_16F"),
    "float32": ("Float", "CUDA_R_32F"),
}


@dataclass
class Fault:
    """What was put into a module. `fired` counts how often it showed."""

    kind: str
    calls: int = 0  # calls of the module in the bad dtype
    fired: int = 0
    handles: list[Any] = field(default_factory=list, repr=False)


@contextmanager
def fault(
    model: nn.Module, module: str, kind: str, *, dtype: Dtype | None = None, call: int = 0, row: int | None = None
) -> Iterator[Fault]:
    """Have one module of `model` fail whenever it works in a bad dtype.

    Args:
        model: The model, guarded or not.
        module: The name of the module in it, as in `named_modules()`.
        kind: A key of `TEXTS` raises that text; "nan" and "inf" put such a number into the output; "saturate" pins
            the output to the end of float16.
        dtype: The bad dtype: that of the module's own weights, or without any, of its input. None: the one in which
            the module is now, or without weights the model.
        call: The first call in that dtype that fails, counted from 0. Every later one in it fails too.
        row: The only row of the batch whose numbers are spoiled; all of them where it is None.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind not in (known := (*TEXTS, *_SPOIL)):
        raise ValueError(f"No fault is called {kind!r}. Next: use one of {', '.join(known)}.")
    put = Fault(kind)
    target = model.get_submodule(module)
    wrong = dtype or _dtype_of(target) or _dtype_of(model) or BFLOAT16
    bad = getattr(torch, wrong.name)

    def before(running: nn.Module, args: Any, kwargs: Any) -> None:
        if _works_in(running, [*args, *kwargs.values()]) != bad:
            return
        put.calls += 1
        if kind in TEXTS and put.calls > call:
            put.fired += 1
            raise RuntimeError(_spelled(TEXTS[kind], wrong))

    def after(running: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if kind in TEXTS or put.calls <= call or _works_in(running, [*args, *kwargs.values()]) != bad:
            return None
        put.fired += 1
        return _spoiled(output, _SPOIL[kind], row)

    put.handles = [
        target.register_forward_pre_hook(before, with_kwargs=True),
        target.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield put
    finally:
        for handle in put.handles:
            handle.remove()


def _set(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[..., -1] = value
        return changed

    return spoil


_SPOIL: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": _set(float("nan")),
    "inf": _set(float("inf")),
    "saturate": _set(64504.0),
}


def _dtype_of(module: nn.Module) -> Dtype | None:
    own = _works_in(module, [])
    try:
        return dtype_named(str(own).removeprefix("torch.")) if own is not None else None
    except UnknownDtypeError:
        return None


def _works_in(module: nn.Module, arguments: list[Any]) -> torch.dtype | None:
    tensors = [*module.parameters(recurse=False), *module.parameters(), *arguments]
    floating = (tensor for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.is_floating_point())
    return next((tensor.dtype for tensor in floating), None)


def _spoiled(output: Any, spoil: Callable[[torch.Tensor], torch.Tensor], row: int | None) -> Any:
    if isinstance(output, dict):  # transformers' own outputs are such
        return type(output)({name: _spoiled(part, spoil, row) for name, part in output.items()})
    if isinstance(output, (tuple, list)):
        parts = [_spoiled(part, spoil, row) for part in output]
        return output._make(parts) if hasattr(output, "_make") else type(output)(parts)
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        return output
    if row is None:
        return spoil(output)
    changed: torch.Tensor = output.clone()
    changed[row] = spoil(output[row])
    return changed


def _spelled(text: str, dtype: Dtype) -> str:
    for old, new in zip(_SPELLED["bfloat16"], _SPELLED.get(dtype.name, _SPELLED["bfloat16"]), strict=True):
        text = text.replace(old, new)
    return text
