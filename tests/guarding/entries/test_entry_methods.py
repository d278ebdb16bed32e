"""Entries are the methods that run a model: `forward`, and what a class adds to those that every model has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from safe_dtype.guarding.entries.entry_methods import entry_methods, is_step


class Codec(nn.Module):
    """A codec, as a repository's own code writes one."""

    width = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return x

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return x

    def half(self) -> Any:
        """Be careful."""
        return super().half()

    def stream(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield it."""
        yield x

    async def later(self, x: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return x

    def _private(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @staticmethod
    def double(x: torch.Tensor) -> torch.Tensor:
        """Return twice as much."""
        return 2 * x

    @classmethod
    def made(cls) -> Any:
        """Return one."""
        return cls()

    @property
    def rate(self) -> int:
        """Return a number."""
        return 5


class Finer(Codec):
    """A codec with a method more."""

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return x


@pytest.mark.parametrize(
    ("model_class", "names"),
    [
        (Codec, ["encode", "forward"]),
        (Finer, ["decode", "encode", "forward"]),
        (nn.Module, []),
        (nn.Sequential, ["forward"]),
        (nn.Linear, []),
        (tf.BertModel, ["forward"]),
        (tf.Qwen3ForCausalLM, ["forward"]),
        (tf.CLIPModel, ["forward", "get_image_features", "get_text_features"]),
        (tf.EncodecModel, ["decode", "encode", "forward"]),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_entries(model_class: type, names: list[str]) -> None:
    """Neither housekeeping, however a class does it, nor what is private, static, a generator or a value."""
    assert [name for _, name in entry_methods(model_class)] == names


def test_owner() -> None:
    """An entry comes with the class that defines it."""
    assert {name: owner for owner, name in entry_methods(Finer)} == {
        "decode": Finer, "encode": Codec, "forward": Codec,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("args", "kwargs", "answer"),
    [
        ((torch.ones(2),), {}, True),
        ((), {"x": torch.ones(2)}, True),
        (([torch.ones(2), None],), {}, True),
        ((tf.BatchEncoding({"input_ids": torch.ones(2)}),), {}, True),
        ((), {}, False),
        (("Hello", 5, None, ["a"]), {"config": {"width": 3}}, False),
    ],
)
def test_steps(args: tuple[Any, ...], kwargs: dict[str, Any], answer: bool) -> None:
    """A step is handed tensors."""
    assert is_step(args, kwargs) is answer
