"""Forwards of transformers that many architectures have under names of their own, known by their code.

Two functions with the same instructions on the same names, in which their globals are the same too, compute the same,
whoever has written them. A subclass with a forward of its own, and a class whose forward was replaced, have other code.
"""

from __future__ import annotations

import builtins
import dis
from functools import cache, lru_cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

ANY: Any = object()  # in the place of a known function: whichever there is


def is_known(function: Any, known: Any) -> bool:
    """Whether a function has the code of a known one, and so have those that it calls by name."""
    if known is ANY:
        return True
    if type(function) is not FunctionType or type(known) is not FunctionType:
        return function is known
    return (
        _may_be_equal(function.__code__, known.__code__)
        and _instructions(function.__code__) == _instructions(known.__code__)
        and function.__defaults__ == known.__defaults__
        and not function.__kwdefaults__
        and not function.__closure__
        and all(is_known(_global(function, name), _global(known, name)) for name in _globals_of(known.__code__))
    )


def _global(function: FunctionType, name: str) -> Any:
    return function.__globals__.get(name, getattr(builtins, name, None))


def _may_be_equal(code: CodeType, known: CodeType) -> bool:
    """Whether two codes have names alike: to list the instructions of all forwards of a model takes a tenth of a second."""
    return code.co_names == known.co_names and code.co_varnames == known.co_varnames


@cache
def _globals_of(code: CodeType) -> set[str]:
    return {one.argval for one in dis.get_instructions(code) if one.opname == "LOAD_GLOBAL"}


@lru_cache(maxsize=64)
def _instructions(code: CodeType) -> tuple[Any, ...]:
    named = [(one.opname, one.argval, type(one.argval)) for one in dis.get_instructions(code)]
    return code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, named


# The functions below are transformers', word for word.


def norm(self: Any, hidden_states: Tensor) -> Tensor:
    """Divide rows by their root mean square: `LlamaRMSNorm.forward`."""
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
    return self.weight * hidden_states.to(input_dtype)  # type: ignore[no-any-return]


def gated(self: Any, x: Tensor) -> Tensor:
    """Multiply one product by the activation of another: `LlamaMLP.forward`."""
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj  # type: ignore[no-any-return]  # noqa: RET504


def silu(self: Any, input: Tensor) -> Tensor:  # noqa: A002, ARG001
    """Return x / (1 + exp(-x)): `SiLUActivation.forward`."""
    return nn.functional.silu(input)


def rotate_half(x: Any) -> Any:
    """Turn half of the numbers."""
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary_pos_emb(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    """Turn queries and keys by their positions."""
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed
