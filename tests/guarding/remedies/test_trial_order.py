"""Which remedies are tried, and in which order, for every kind of failure and situation of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as tf
from engineered import engineered
from guarding.generators import DOWN, tiny
from rescaling.gauges_by_hand import residual
from torch import nn

from safe_dtype import FLOAT16, Dtype, guard
from safe_dtype.facts import Rescale
from safe_dtype.guarding import Failure, FailureKind
from safe_dtype.guarding.incident import Incident
from safe_dtype.guarding.remedies import remedies_for
from safe_dtype.guarding.state import guard_of
from safe_dtype.models.recast import recast
from safe_dtype.rescaling import gauges_for
from safe_dtype.rescaling.to_float16 import halve

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OP, ARCH, MISMATCH = FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.DTYPE_MISMATCH
NONFINITE, POLICY, GRAPH = FailureKind.NONFINITE, FailureKind.POLICY_REFUSAL, FailureKind.EXPORT_GRAPH

ALIGN_INPUTS, ALIGN_MODULE = "inputs cast to the model's dtype", "inputs of the module cast to its weights' dtype"
AUTOCAST, ISLAND, EAGERLY = "torch.autocast", "the module in float32", "without compilation"
SDPA, EAGER = "sdpa attention", "eager attention"
RESCALE, RAISE = "an exact rescaling", "the exact rescaling raised by 3 bits"


def mixed() -> Any:
    """A vision tower in float32 beside a language model in bfloat16."""
    model = tiny("llava")
    recast(model.model.vision_tower, {BF16}, FP32)
    return model


def with_attention(implementation: str) -> Callable[[], Any]:
    """A model that uses this implementation of attention."""

    def make() -> Any:
        model = tiny()
        model.config._attn_implementation = implementation
        return model

    return make


def rescaled() -> Any:
    """A model in float16 whose residual stream was scaled down by two bits."""
    model = engineered("qwen3").bfloat16()
    halve(model, Rescale(((residual(model), 2),)))
    return model


def rescaled_cache() -> Any:
    """An OLMo 2 in float16, rescaled: it has no norm before its projections, so what it caches is smaller too."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = tf.Olmo2ForCausalLM(tf.Olmo2Config(vocab_size=64, **sizes)).eval().bfloat16()
    gauge = next(one for one in gauges_for(model).gauges if one.name == "residual")
    halve(model, Rescale(((gauge, 2),)))
    return model


def mostly_float32() -> Any:
    """A model in float32, with a part in bfloat16."""
    model = tiny(dtype=FP32)
    model.model.layers[0].mlp.down_proj.to(BF16)
    return model


def plain() -> Any:
    """A network that transformers knows nothing of."""
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(BF16).eval()


MODELS: dict[str, Callable[[], Any]] = {
    "bfloat16": tiny,
    "float16": lambda: tiny(dtype=FP16),
    "float32": lambda: tiny(dtype=FP32),
    "mixed": mixed,
    "eager": with_attention("eager"),
    "flash": with_attention("flash_attention_2"),
    "mostly-float32": mostly_float32,
    "rescaled": rescaled,
    "rescaled-cache": rescaled_cache,
    "plain": plain,
}


@dataclass(frozen=True)
class Situation:
    """A model, the wishes for it, and what is known about the failure."""

    model: str = "bfloat16"
    policy: str = "auto"
    blamed: str | None = None
    inputs: torch.dtype | None = None
    failed: Dtype | None = None
    allowed: tuple[Dtype, ...] = ()
    left: tuple[torch.dtype, ...] = ()
    step: int = 0
    restarts: bool = False


def names_of(situation: Situation, kind: FailureKind) -> list[str]:
    """Return the names of the remedies that would be tried, in their order."""
    model = guard(MODELS[situation.model](), policy=situation.policy)
    state = guard_of(model)
    assert state is not None
    state.left.update(situation.left)
    failure = Failure(kind, "", dtype=situation.failed, allowed=situation.allowed, step=situation.step)
    inputs = [torch.zeros(1, 4, dtype=situation.inputs)] if situation.inputs else []
    blamed = model.get_submodule(situation.blamed) if situation.blamed else None
    incident = Incident(state, model, failure, 0.0, blamed, inputs, restarts=situation.restarts)
    return [str(remedy) for remedy in remedies_for(incident)]


# The order of today. A remedy that is new goes to its place in it; the others stay in theirs.
# fmt: off
TABLE: dict[str, tuple[Situation, dict[FailureKind, list[str]]]] = {
    "bfloat16": (Situation(), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "blamed": (Situation(blamed=DOWN), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: [ALIGN_MODULE, "float32"], NONFINITE: ["float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "islands-allowed": (Situation(policy="auto,islands", blamed=DOWN), {
        OP: [ISLAND, "float32"], ARCH: [EAGER, ISLAND, "float32"], MISMATCH: [ALIGN_MODULE, "float32"],
        NONFINITE: [ISLAND, "float32"], POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "islands-allowed-nobody-blamed": (Situation(policy="auto,islands"), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "ladder": (Situation(policy="ladder=bf16>fp16>fp32"), {
        OP: ["float16", "float32"], ARCH: [EAGER, "float16", "float32"], MISMATCH: ["float16", "float32"],
        NONFINITE: ["float32"], POLICY: ["float16", "float32"], GRAPH: [EAGERLY, "float16", "float32"],
    }),
    "float16-failed": (Situation(policy="ladder=bf16>fp16>fp32", failed=FLOAT16), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "text-allows-float16": (Situation(policy="ladder=bf16>fp16>fp32", allowed=(FLOAT16,)), {
        OP: ["float16"], ARCH: [EAGER, "float16"], MISMATCH: ["float16"], NONFINITE: [], POLICY: ["float16"],
        GRAPH: [EAGERLY, "float16"],
    }),
    "float16-was-left": (Situation(policy="ladder=bf16>fp16>fp32", left=(FP16,)), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "float32-inputs": (Situation(blamed=DOWN, inputs=FP32), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: [ALIGN_INPUTS, ALIGN_MODULE, "float32"],
        NONFINITE: ["float32"], POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "float32-inputs-nobody-blamed": (Situation(inputs=FP32), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: [ALIGN_INPUTS, "float32"], NONFINITE: ["float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "float16": (Situation("float16"), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: [RESCALE, "float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "float16-ladder-and-islands": (Situation("float16", policy="ladder=fp16>bf16>fp32,islands", blamed=DOWN), {
        OP: [ISLAND, "bfloat16", "float32"], ARCH: [EAGER, ISLAND, "bfloat16", "float32"],
        MISMATCH: [ALIGN_MODULE, "bfloat16", "float32"], NONFINITE: [RESCALE, ISLAND, "bfloat16", "float32"],
        POLICY: ["bfloat16", "float32"], GRAPH: [EAGERLY, "bfloat16", "float32"],
    }),
    "float16-ladder-with-bfloat16": (Situation("float16", policy="ladder=bf16>fp32"), {
        OP: ["bfloat16", "float32"], ARCH: [EAGER, "bfloat16", "float32"], MISMATCH: ["bfloat16", "float32"],
        NONFINITE: [RESCALE, "bfloat16", "float32"], POLICY: ["bfloat16", "float32"],
        GRAPH: [EAGERLY, "bfloat16", "float32"],
    }),
    "float32": (Situation("float32", blamed=DOWN), {
        OP: [], ARCH: [EAGER], MISMATCH: [ALIGN_MODULE], NONFINITE: [], POLICY: [], GRAPH: [EAGERLY],
    }),
    "mixed": (Situation("mixed"), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: [AUTOCAST, "float32"], NONFINITE: ["float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "mixed-with-float32-inputs-and-islands": (Situation("mixed", policy="auto,islands", blamed="model.multi_modal_projector", inputs=FP32), {
        OP: [ISLAND, "float32"], ARCH: [EAGER, ISLAND, "float32"],
        MISMATCH: [ALIGN_INPUTS, AUTOCAST, ALIGN_MODULE, "float32"], NONFINITE: [ISLAND, "float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "mostly-float32": (Situation("mostly-float32"), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "eager-attention": (Situation("eager"), {
        OP: ["float32"], ARCH: ["float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "flash-attention": (Situation("flash", policy="auto,islands", blamed=DOWN), {
        OP: [ISLAND, "float32"], ARCH: [SDPA, EAGER, ISLAND, "float32"], MISMATCH: [ALIGN_MODULE, "float32"],
        NONFINITE: [ISLAND, "float32"], POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "rescaled": (Situation("rescaled", policy="auto,islands", blamed=DOWN), {
        OP: [ISLAND, "float32"], ARCH: [EAGER, ISLAND, "float32"], MISMATCH: [ALIGN_MODULE, "float32"],
        NONFINITE: [RAISE, ISLAND, "float32"], POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "rescaled-later-step": (Situation("rescaled", step=3), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: [RAISE, "float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "rescaled-with-cache-first-step": (Situation("rescaled-cache"), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: [RAISE, "float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "rescaled-with-cache-later-step": (Situation("rescaled-cache", step=3), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: ["float32"], POLICY: ["float32"],
        GRAPH: [EAGERLY, "float32"],
    }),
    "rescaled-with-cache-restarts": (Situation("rescaled-cache", step=3, restarts=True), {
        OP: ["float32"], ARCH: [EAGER, "float32"], MISMATCH: ["float32"], NONFINITE: [RAISE, "float32"],
        POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
    "not-of-transformers": (Situation("plain", policy="auto,islands", blamed="1"), {
        OP: [ISLAND, "float32"], ARCH: [ISLAND, "float32"], MISMATCH: [ALIGN_MODULE, "float32"],
        NONFINITE: [ISLAND, "float32"], POLICY: ["float32"], GRAPH: [EAGERLY, "float32"],
    }),
}
# fmt: on


@pytest.mark.parametrize("kind", FailureKind, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_order(name: str, kind: FailureKind) -> None:
    """For every kind of failure, in every situation, these remedies are tried, in this order."""
    situation, expected = TABLE[name]
    assert names_of(situation, kind) == expected[kind]
