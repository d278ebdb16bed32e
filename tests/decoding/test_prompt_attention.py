"""Attention of a prompt is computed in chunks where nobody looks on, and is torch's everywhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers as tf
from torch import Tensor

from safe_dtype import guard
from safe_dtype.decoding import can_be_in_chunks
from safe_dtype.facts import BFLOAT16, FLOAT32
from safe_dtype.guarding.entries import attention_of_steps
from safe_dtype.guarding.state import guard_of
from safe_dtype.models.origin import Origin, keep_origin
from safe_dtype.planning import Plan, Policy, Routes

pytest.importorskip("llvmlite", reason="kernels are compiled by llvmlite, of the extra `fast`")

ROWS = 140


def states(rows: int = ROWS, positions: int = ROWS, *, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """Return query, key and value of 4 heads, 2 of which share."""
    made = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, heads, count, 8, generator=made).to(dtype)
        for heads, count in ((4, rows), (2, positions), (2, positions))
    )


def test_what_can_be() -> None:
    """Prompts of a dtype, with or without a mask of bools that is one for all heads."""
    seen = torch.ones(1, 1, ROWS, ROWS, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert can_be_in_chunks(*states(dtype=dtype), None)
    assert can_be_in_chunks(*states(), seen)
    assert can_be_in_chunks(*states(positions=200), None)
    assert not can_be_in_chunks(*states(rows=20, positions=20), None)
    assert not can_be_in_chunks(*states(dtype=torch.float64), None)
    assert not can_be_in_chunks(*states(), seen.float())
    assert not can_be_in_chunks(*states(), seen.expand(1, 4, ROWS, ROWS))
    assert not can_be_in_chunks(*states(), seen[..., :-1])
    query, key, value = states()
    assert not can_be_in_chunks(query, key.float(), value, None)
    assert not can_be_in_chunks(query[:1], key, value, None)


def test_who_looks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, autocast, transforms, and a patch of torch's function."""
    query, key, value = states()
    with torch.enable_grad():
        assert not can_be_in_chunks(query.requires_grad_(), key, value, None)
    query.requires_grad_(requires_grad=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_be_in_chunks(query, key, value, None)
    asked = []
    torch.vmap(lambda one: asked.append(can_be_in_chunks(one, key, value, None)) or one)(query[None])
    assert asked == [False]
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **kwargs: None)
    assert not can_be_in_chunks(query, key, value, None)


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the rows of each attention in chunks."""
    rows, attention = [], attention_of_steps.attend_rows

    def noting(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(query.shape[2])
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(attention_of_steps, "attend_rows", noting)
    return rows


def model_of(kind: str, dtype: torch.dtype) -> Any:
    """Return a seeded model of two layers: one that shares keys, or one with a sliding window in every second layer."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 16,
        "num_key_value_heads": 2, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    if kind == "window":
        config = tf.Qwen2Config(**shape, use_sliding_window=True, sliding_window=24, max_window_layers=1)
        return tf.Qwen2ForCausalLM(config).to(dtype).eval()
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**shape)).to(dtype).eval()


def planned(model: Any, routes: Routes) -> Any:
    """Guard `model` as one that was loaded with these routes."""
    stored = FLOAT32 if model.dtype == torch.float32 else BFLOAT16
    plan = Plan(
        "a model", "cpu", "a CPU", True, stored, stored, FLOAT32, "a test", Policy(), (stored, FLOAT32), (), routes=routes
    )  # fmt: skip
    keep_origin(model, Origin(plan, type(model), None, {}, None))  # type: ignore[arg-type]
    return guard(model)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("kind", ["shared", "window"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@torch.no_grad()
def test_prompts(dtype: torch.dtype, kind: str, cache: str | None, chunks: list[int], *, padded: bool) -> None:
    """Logits of a batch, by oneDNN and in chunks, are no farther from float32 than plain ones, in KL; steps are as ever."""
    ids = torch.arange(2 * 150).view(2, 150) % 90 + 3
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :40] = 0
    model = model_of(kind, dtype)
    arguments = {"attention_mask": mask}
    plain, right = model(ids, **arguments).logits, model_of(kind, dtype).float()(ids, **arguments).logits
    greedy = model.generate(ids, **arguments, max_new_tokens=4, do_sample=False, cache_implementation=cache)
    planned(model, Routes("plain", 9, (1e-9,) * 3, onednn=True, chunks=True))
    assert guard_of(model).attends_in_chunks  # type: ignore[union-attr]
    mine = model(ids, **arguments).logits
    assert chunks == [150, 150]
    if padded:
        plain, right, mine = (one.where(mask[..., None].bool(), 0.0) for one in (plain, right, mine))

    def divergence(logits: Tensor) -> float:
        return F.kl_div(
            logits.float().log_softmax(-1), right.log_softmax(-1), log_target=True, reduction="batchmean"
        ).item()

    assert divergence(mine) <= max(1.02 * divergence(plain), 1e-7 * mine.shape[1])
    if dtype == torch.float32:
        again = model.generate(ids, **arguments, max_new_tokens=4, do_sample=False, cache_implementation=cache)
        assert torch.equal(again, greedy)


def test_training(chunks: list[int]) -> None:
    """Where gradients are asked for, attention and products are torch's, bit for bit."""
    ids = torch.arange(150)[None] % 90 + 3
    losses = []
    for is_planned in (False, True):
        model = model_of("shared", torch.float32)
        if is_planned:
            planned(model, Routes("plain", 9, (1e-9,) * 3, onednn=True, chunks=True))
        model.train()
        loss = model(ids, labels=ids).loss
        loss.backward()
        losses.append((loss.detach(), model.model.layers[0].mlp.up_proj.weight.grad))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])
    assert not chunks


def test_without_heads() -> None:
    """Attention of no head is torch's, with as many that share none as with none that share."""
    query, key, value = states()
    assert not can_be_in_chunks(query[:, :0], key[:, :0], value[:, :0], None)
    assert not can_be_in_chunks(query, key[:, :0], value[:, :0], None)


def negated(tensor: Tensor) -> Tensor:
    """Return the same numbers, which lie in memory with the other sign."""
    return torch._neg_view(-tensor)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_numbers_that_lie_negated(which: int) -> None:
    """What torch keeps in memory with the other sign is torch's to multiply."""
    operands = list(states())
    operands[which] = negated(operands[which])
    assert not can_be_in_chunks(*operands, None)
