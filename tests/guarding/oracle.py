"""The runs that a guarded one is compared with: the same model, switched on purpose, with nothing failing."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.utils import ModelOutput

from safe_dtype import Dtype


class Switch:
    """Cast a model, its cache and its inputs at the beginning of its call number `call`, counted from 0.

    Written without anything of safe_dtype.guarding: `model.to`, but for buffers and parameters kept in another dtype.
    """

    def __init__(self, model: nn.Module, call: int, dtype: Dtype) -> None:
        self.model, self.call, self.to = model, call, getattr(torch, dtype.name)
        self.calls = 0
        self.old = next(one.dtype for one in model.parameters() if one.is_floating_point())
        model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, model: nn.Module, args: Any, kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self.call + 1:
            for one in (*model.parameters(), *model.buffers()):
                if one.dtype == self.old:
                    one.data = one.data.to(self.to)
        if self.calls > self.call:
            return self._cast(args), {name: self._cast(value) for name, value in kwargs.items()}
        return None

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self.to) if value.dtype == self.old else value
        if isinstance(value, EncoderDecoderCache):
            self._cast(value.self_attention_cache)
            self._cast(value.cross_attention_cache)
        elif isinstance(value, Cache):
            for layer in value.layers:
                for name, held in layer.__dict__.items():
                    layer.__dict__[name] = self._cast_held(held)
        elif isinstance(value, ModelOutput):
            return type(value)(**{name: self._cast(one) for name, one in value.items()})
        elif type(value) in (tuple, list):
            return type(value)(self._cast(one) for one in value)
        return value

    def _cast_held(self, held: Any) -> Any:
        if isinstance(held, torch.dtype):
            return self.to if held == self.old else held
        if isinstance(held, dict):
            return {name: self._cast_held(one) for name, one in held.items()}
        if isinstance(held, (tuple, list)):
            return type(held)(self._cast_held(one) for one in held)
        return self._cast(held)
