"""Experts multiply few tokens by compiled code, and nothing else about a model changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models.forwards.compiled import counted
from torch import Tensor, nn
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from safe_dtype.models.block_layout import take_back
from safe_dtype.models.forwards import experts_forward
from safe_dtype.models.forwards.experts_forward import compile_experts

pytest.importorskip("llvmlite", reason="products are compiled by llvmlite, of the extra `fast`")

BF16 = torch.bfloat16
SIZES: dict[str, Any] = {"hidden_size": 256, "num_experts_per_tok": 3}
KINDS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3MoeExperts(Qwen3MoeConfig(**SIZES, moe_intermediate_size=136, num_experts=7)),
    "mixtral": lambda: MixtralExperts(MixtralConfig(**SIZES, intermediate_size=136, num_local_experts=7)),
    "gpt-oss": lambda: GptOssExperts(GptOssConfig(**SIZES, intermediate_size=136, num_local_experts=7)),
}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The experts that compute compiled from now on."""
    return counted(monkeypatch, experts_forward, "_summed")


def experts_of(kind: str, dtype: torch.dtype = BF16, implementation: str = "grouped_mm") -> Any:
    """Return seeded experts."""
    torch.manual_seed(0)
    module = KINDS[kind]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.1)
    module.config._experts_implementation = implementation
    return module.to(dtype).eval().requires_grad_(False)


def tokens(count: int, dtype: torch.dtype = BF16) -> tuple[Tensor, Tensor, Tensor]:
    """Return seeded states, the numbers of their experts, and the weights of these."""
    torch.manual_seed(1)
    weights, chosen = torch.randn(count, 7).softmax(-1).topk(3, -1)
    return torch.randn(count, 256).to(dtype), chosen, weights.to(dtype)


def near(result: Tensor, right: Tensor) -> bool:
    """Whether numbers are within a few roundings of the largest."""
    return bool(
        (result.double() - right.double()).abs().max() <= 3 * torch.finfo(result.dtype).eps * right.abs().max()
    )


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_as_in_float64(kind: str, dtype: torch.dtype, called: list[Any]) -> None:
    """One token and some are those of transformers' loop over experts in float64, within the roundings between its steps."""
    module, exact = experts_of(kind, dtype), experts_of(kind, torch.float64, "eager")
    for own, other in zip(exact.parameters(), module.parameters(), strict=True):
        own.copy_(other)
    assert compile_experts(module, dtype, 8) == 1
    for count in (1, 2, 8):
        states, chosen, weights = tokens(count, dtype)
        assert near(module(states, chosen, weights), exact(states.double(), chosen, weights.double()))
    assert len(called) == 3
    plain = experts_of(kind, dtype)
    assert torch.equal(module(*tokens(9, dtype)), plain(*tokens(9, dtype)))
    assert len(called) == 3


def under_autocast(module: Any) -> Tensor:
    """Call it under autocast."""
    with torch.autocast("cpu", BF16):
        return module(*tokens(2))


def with_gradients(module: Any) -> Tensor:
    """Call it where gradients of its weights are recorded."""
    module.requires_grad_(requires_grad=True)
    result = module(*tokens(2))
    result.sum().backward()
    assert module.down_proj.grad is not None
    return result.detach()


def eagerly(module: Any) -> Tensor:
    """Call it as its class computes."""
    module.config._experts_implementation = "eager"
    return module(*tokens(2))


def under_another_class(module: Any) -> Tensor:
    """Give it another class."""
    module.__class__ = type("Plain", (type(module),), {})
    return module(*tokens(2))


@pytest.mark.parametrize(
    "call",
    [
        under_autocast,
        with_gradients,
        eagerly,
        under_another_class,
        pytest.param(lambda module: copy.deepcopy(module)(*tokens(2)), id="deepcopy"),
    ],
)
def test_where_it_is_transformers(call: Callable[[Any], Tensor], called: list[Any]) -> None:
    """Autocast, gradients, another implementation or class, and copies are transformers', bit for bit."""
    module, plain = experts_of("qwen3"), experts_of("qwen3")
    compile_experts(module, BF16, 8)
    assert torch.equal(call(module), call(plain))
    assert not called


def test_what_changes_counts() -> None:
    """What is written to the weights, in any way, and a replaced tensor in other strides are what is multiplied."""
    module, plain = experts_of("gpt-oss"), experts_of("gpt-oss")
    compile_experts(module, BF16, 8)
    for one in (module, plain):
        one.down_proj.data[2] = 1
        one.gate_up_proj = nn.Parameter(
            one.gate_up_proj.transpose(1, 2).contiguous().transpose(1, 2), requires_grad=False
        )
    assert near(module(*tokens(3)), plain(*tokens(3)))


def test_numbers_that_are_no_experts(called: list[Any]) -> None:
    """A number beyond the last expert, as ranks have it for those of others, is transformers' to skip."""
    module, (states, chosen, weights) = experts_of("mixtral"), tokens(2)
    compile_experts(module, BF16, 8)
    chosen[0, 0] = 9
    result, plain = module(states, chosen, weights), experts_of("mixtral")(states, chosen, weights)
    assert torch.equal(result[1], plain[1])
    assert not called


def test_a_model(called: list[Any]) -> None:
    """A mixture goes on with plain's tokens; undone, every bit is plain's."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SIZES, vocab_size=600, moe_intermediate_size=136, num_experts=7, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).to(BF16).eval().requires_grad_(False)
    ids = torch.arange(3, 23)[None]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    before, logits = model.generate(ids, **options), model(ids[:, :3]).logits
    assert compile_experts(model, BF16, 8) == 2
    assert model.generate(ids, **options)[0, 20:22].tolist() == before[0, 20:22].tolist()
    assert called
    assert take_back(model) == 2
    assert torch.equal(model(ids[:, :3]).logits, logits)


def test_a_gate_that_makes_other_numbers() -> None:
    """Where a gate of a user's makes float32, the experts are transformers', which rounds it."""
    module, plain = experts_of("qwen3"), experts_of("qwen3")
    compile_experts(module, BF16, 8)
    for one in (module, plain):
        one._apply_gate = lambda product, gate=one._apply_gate: gate(product).float()
    assert torch.equal(module(*tokens(2)), plain(*tokens(2)))
