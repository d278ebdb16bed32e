"""Texts that no family was written for, raised inside real modules: the experiment decides, not the words."""

from __future__ import annotations

import builtins
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from safe_dtype import guard, report

TEXTS = Path(__file__).with_name("held_back")
PROMPT, STEPS = 5, 3
PLACES = (
    "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.input_layernorm",
    "model.layers.0.mlp.act_fn", "model.norm", "lm_head", "model.embed_tokens", "model.layers.0.self_attn",
    "model.layers.1",
)  # fmt: skip


class CustomError(Exception):
    """An error of some library."""


class VendorError(RuntimeError):
    """An error of some backend."""


def texts_of(label: str) -> list[dict[str, str]]:
    """Return the texts that carry this label."""
    return [json.loads(line) for line in (TEXTS / f"{label}.jsonl").read_text(encoding="utf-8").splitlines()]


def exception_of(text: dict[str, str]) -> BaseException:
    """Return the exception that a text describes."""
    own = {"CustomError": CustomError, "VendorError": VendorError}
    kind = own.get(text["type"]) or getattr(builtins, text["type"])
    return kind(text["message"]) if text["message"] else kind()  # type: ignore[no-any-return]


@functools.cache
def config() -> Any:
    """Return the config of a tiny Llama."""
    return transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip


def model_in(dtype: torch.dtype) -> Any:
    """Return a seeded model whose weights are bfloat16 numbers, in `dtype`."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config()).bfloat16().to(dtype).eval()


class Kernel:
    """What stands in a module's forward: fails at its call number `first` and from then on, in `bad` dtypes."""

    def __init__(self, module: nn.Module, text: dict[str, str], bad: set[torch.dtype], first: int) -> None:
        self.text, self.bad, self.first = text, bad, first
        self.calls = 0
        self.raised: list[BaseException] = []
        self.forward = type(module).forward

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, or fail."""
        number, self.calls = self.calls, self.calls + 1
        tensors = [*module.parameters(), *(value for value in (*args, *kwargs.values()) if torch.is_tensor(value))]
        if number >= self.first and any(tensor.dtype in self.bad for tensor in tensors):
            self.raised.append(exception_of(self.text))
            raise self.raised[-1]
        return self.forward(module, *args, **kwargs)


@contextmanager
def failing(model: Any, place: str, text: dict[str, str], bad: set[torch.dtype], first: int) -> Iterator[Kernel]:
    """Have the module at `place` fail inside its own forward."""
    module = model.get_submodule(place)
    kernel = Kernel(module, text, bad, first)
    plain = type(module)
    module.__class__ = type(
        plain.__name__, (plain,), {"forward": lambda self, *args, **kwargs: kernel(self, *args, **kwargs)}
    )
    try:
        yield kernel
    finally:
        module.__class__ = plain


@torch.no_grad()
def logits_of(model: Any, cache: Any = None, steps: int = STEPS) -> list[torch.Tensor]:
    """Return the logits of a prompt, and of some given tokens after it, one by one."""
    cache = cache if cache is not None else transformers.DynamicCache(config=config())
    tokens = torch.arange(3, 3 + PROMPT + steps)[None]
    parts = (tokens[:, :PROMPT], *tokens[:, PROMPT:].split(1, dim=-1))
    return [model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in parts]


def cases(label: str) -> list[Any]:
    """Return each text with the place, the dtype and the call where it is raised; every second round of places is slow."""
    return [
        pytest.param(
            text, PLACES[number % len(PLACES)], (torch.bfloat16, torch.float16)[number // 3 % 2], number % 3,
            id=f"{number}-{text['type']}-{text['message'][:24]}",
            marks=pytest.mark.slow if number // len(PLACES) % 2 else (),
        )
        for number, text in enumerate(texts_of(label))
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "place", "dtype", "first"), cases("curable"))
def test_what_fails_in_16_bit_alone_goes_on(text: dict[str, str], place: str, dtype: torch.dtype, first: int) -> None:
    """The step goes on, whatever the text: what it returns is close to float32's, and an event tells of it."""
    wanted = logits_of(model_in(torch.float32))
    model = guard(model_in(dtype))
    with failing(model, place, text, {torch.bfloat16, torch.float16}, first) as kernel:
        results = logits_of(model)
    assert kernel.raised
    assert len(report(model).events) >= 1
    for result, reference in zip(results, wanted, strict=True):
        error = (result.float() - reference).square().mean().sqrt() / reference.square().mean().sqrt()
        assert error < 0.03


@pytest.mark.parametrize(("text", "place", "dtype", "first"), cases("incurable"))
def test_what_fails_in_every_dtype_comes_through(
    text: dict[str, str], place: str, dtype: torch.dtype, first: int
) -> None:
    """The very exception comes through, and the model is what it was."""
    everything = {torch.bfloat16, torch.float16, torch.float32, torch.float64}
    wanted = logits_of(model_in(dtype))
    model = guard(model_in(dtype))
    kind = type(exception_of(text))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cache = transformers.DynamicCache(config=config())
    random = torch.get_rng_state()
    caught = None
    with failing(model, place, text, everything, first) as kernel:
        try:
            logits_of(model, cache)
        except BaseException as exc:  # noqa: BLE001  (whatever it is)
            caught = exc
    # The first that was raised, or that of the same step run once more: an object the kernel made, of the very type.
    assert caught is not None
    assert type(caught) is kind
    assert caught is kernel.raised[0]
    assert torch.equal(torch.get_rng_state(), random)
    assert report(model).events == ()
    assert model.config._attn_implementation == model_in(dtype).config._attn_implementation
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(layer.keys is None or layer.keys.dtype == dtype for layer in cache.layers)
    # And the model computes what it did before.
    for result, reference in zip(logits_of(model), wanted, strict=True):
        assert torch.equal(result, reference)
