"""Real exceptions of this torch and transformers: which of them another dtype cures."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn
from torch.nn import functional

from safe_dtype.guarding import FailureKind, classify

OP, ARCH, MISMATCH = FailureKind.OP_UNSUPPORTED, FailureKind.KERNEL_ARCH, FailureKind.DTYPE_MISMATCH
NONFINITE, POLICY, GRAPH = FailureKind.NONFINITE, FailureKind.POLICY_REFUSAL, FailureKind.EXPORT_GRAPH
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
EYE = torch.eye(4)


def spoiled_gradient() -> None:
    """Make autograd find a NaN."""
    with torch.autograd.detect_anomaly(check_nan=True):
        zero = torch.zeros(1, requires_grad=True)
        (torch.sqrt(zero) * 0).backward()


def branching(given: torch.Tensor) -> torch.Tensor:
    """Branch on a value, which no graph can."""
    return given + 1 if given.sum() > 0 else given


LIVE: dict[str, tuple[FailureKind, Callable[[], Any]]] = {
    "fft-bf16": (OP, lambda: torch.fft.fft(EYE.to(BF16))),
    "fft-fp16": (OP, lambda: torch.fft.fft(EYE.to(FP16))),
    "cdist": (OP, lambda: torch.cdist(EYE.to(BF16), EYE.to(BF16))),
    "inv": (OP, lambda: torch.linalg.inv(EYE.to(BF16))),
    "svd": (OP, lambda: torch.linalg.svd(EYE.to(FP16))),
    "qr": (OP, lambda: torch.linalg.qr(EYE.to(BF16))),
    "eigh": (OP, lambda: torch.linalg.eigh(EYE.to(FP16))),
    "cholesky": (OP, lambda: torch.linalg.cholesky(EYE.to(BF16))),
    "lu": (OP, lambda: torch.linalg.lu(EYE.to(BF16))),
    "norm": (OP, lambda: torch.linalg.matrix_norm(EYE.to(FP16), ord=2)),
    "histogram": (OP, lambda: torch.histogram(EYE.to(BF16).flatten(), 3)),
    "polar": (OP, lambda: torch.polar(EYE.to(BF16), EYE.to(BF16))),
    "quantile": (OP, lambda: torch.quantile(EYE.to(BF16), 0.5)),
    "float8-add": (OP, lambda: EYE.to(FP8) + 1),
    "float8-promotion": (OP, lambda: EYE.to(FP8) + EYE),
    "float8-softmax": (OP, lambda: EYE.to(FP8).softmax(-1)),
    "float8-silu": (OP, lambda: functional.silu(EYE.to(FP8))),
    "mm": (MISMATCH, lambda: EYE @ EYE.to(BF16)),
    "bmm": (MISMATCH, lambda: torch.bmm(EYE[None], EYE.to(BF16)[None])),
    "linear": (MISMATCH, lambda: functional.linear(EYE, EYE.to(FP16))),
    "conv": (MISMATCH, lambda: nn.Conv2d(1, 1, 1).to(BF16)(torch.zeros(1, 1, 2, 2))),
    "index_put": (MISMATCH, lambda: EYE.to(FP16).index_put((torch.tensor([0]),), EYE[:1])),
    "index_copy": (MISMATCH, lambda: EYE.to(FP16).index_copy(0, torch.tensor([0]), EYE[:1])),
    "lerp": (MISMATCH, lambda: torch.lerp(EYE, EYE.to(FP16), 0.5)),
    "rnn": (MISMATCH, lambda: nn.LSTM(4, 4).half()(EYE[None])),
    "attention": (MISMATCH, lambda: functional.scaled_dot_product_attention(EYE[None], EYE[None].to(BF16), EYE[None])),
    "mask": (
        MISMATCH,
        lambda: functional.scaled_dot_product_attention(*[EYE[None].to(FP16)] * 3, attn_mask=EYE.to(BF16)),
    ),
    "multinomial": (NONFINITE, lambda: torch.multinomial(torch.tensor([torch.nan, 1.0]), 1)),
    "anomaly": (NONFINITE, spoiled_gradient),
    "overflow": (NONFINITE, lambda: EYE.to(FP16).masked_fill(EYE == 0, -1e9)),
    "numpy": (POLICY, lambda: EYE.to(BF16).numpy()),
    "whole-graph": (GRAPH, lambda: torch.compile(branching, backend="eager", fullgraph=True)(torch.ones(2))),
    "trace": (GRAPH, lambda: torch.jit.trace(lambda given: {"a": object()}, torch.ones(1))),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("name", LIVE)
def test_live(name: str) -> None:
    """What this torch really raises is known, with its kind."""
    kind, provoke = LIVE[name]
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of any type; its classification is the test)
        provoke()
    failure = classify(caught.value)
    assert failure is not None, caught.value
    assert failure.kind == kind
    torch.compiler.reset()


def config_error() -> None:
    """Ask for a model that cannot be."""
    transformers.Qwen3ForCausalLM(transformers.Qwen3Config(hidden_size=4, num_attention_heads=4, vocab_size=-5))


LIVE_OTHERS: dict[str, Callable[[], Any]] = {
    "shapes": lambda: EYE.to(BF16) @ torch.ones(3, 3, dtype=BF16),
    "conv-channels": lambda: nn.Conv2d(3, 1, 1).half()(torch.zeros(1, 1, 2, 2).half()),
    "view": lambda: EYE.to(BF16).view(3, 5),
    "cat": lambda: torch.cat([EYE, torch.ones(2, 3)]),
    "broadcast": lambda: EYE + torch.ones(3),
    "index": lambda: nn.Embedding(3, 4, dtype=BF16)(torch.tensor([5])),
    "float-index": lambda: EYE[EYE.to(FP16)],
    "integers": lambda: EYE.long() @ EYE,
    "integer-softmax": lambda: torch.ones(3, dtype=torch.long).softmax(0),
    "integer-mean": lambda: torch.ones(3, dtype=torch.long).mean(),
    "one-hot": lambda: functional.one_hot(EYE),
    "nll-target": lambda: functional.nll_loss(EYE, EYE[0]),
    "meta": lambda: EYE.to("meta").item(),
    "no-cuda": lambda: EYE.to("xpu") if not torch.xpu.is_available() else 1 / 0,
    "no-file": lambda: transformers.AutoModel.from_pretrained("./model-bf16"),
    "no-weights": lambda: safetensors.torch.load(b"bfloat16"),
    "state-dict": lambda: nn.Linear(2, 2).load_state_dict({"weights": torch.ones(2, 2, dtype=BF16)}),
    "dtype-name": lambda: torch.bfloat17,  # type: ignore[attr-defined]
    "config": config_error,
    "argument": lambda: nn.Linear(2, 2, dtypes=BF16),  # type: ignore[call-arg]
    "pickle": lambda: torch.load(io.BytesIO(b"bf16"), weights_only=True),
    "grad": lambda: EYE.to(BF16).sum().backward(),
    "key": lambda: {}["bfloat16"],
    "assert": lambda: (_ for _ in ()).throw(AssertionError("bfloat16 expected 3 rows")),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIVE_OTHERS)
def test_live_others(name: str) -> None:
    """What this torch and transformers raise for other reasons is let through."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of any type)
        LIVE_OTHERS[name]()
    assert classify(caught.value) is None, caught.value
